/**
 * What the project's files hold, as one shape the page can show: lines of a run's `results.jsonl`, answers of the API,
 * and what the page itself saves.
 */

import { signed } from './format.js';

/** @typedef {import('./tokens.js').Shown} Shown */

/**
 * @typedef {object} Shape
 * @property {string} kind
 * @property {string} title
 * @property {string | null} prompt
 * @property {string | null} text
 * @property {number[] | null} ids
 * @property {string[] | null} texts of the tokens, if the file has them
 * @property {string | null} leads
 * @property {Record<string, (number | null)[]>} values by measure, one a token
 * @property {any} asked what came before, as `/divergence` takes it
 * @property {Record<string, any>} facts
 * @property {string | null} reference
 * @property {any} source
 */

/** Every record in a document of ours; a record of no known kind as itself. @param {any} document @returns {any[]} */
export function recordsOf(document) {
  if (Array.isArray(document)) return document.flatMap(recordsOf);
  if (document === null || typeof document !== 'object') return [document];
  if (document.kind === 'rl-onoff score' && Array.isArray(document.response?.items)) {
    return document.response.items.map((/** @type {any} */ item, /** @type {number} */ i) => ({ ...asked(document.request.items[i]), ...item, id: i }));
  }
  if (document.kind === 'rl-onoff switched generation') {
    const { tokens, measure, request, response } = document;
    return [
      {
        ...asked(request),
        ...response,
        measure,
        text: tokens.map((/** @type {any} */ token) => token.text).join(''),
        token_ids: tokens.map((/** @type {any} */ token) => token.id),
        tokens: tokens.map((/** @type {any} */ token) => token.text),
        leads: tokens.map((/** @type {any} */ token) => token.lead).join(''),
        divergences: tokens.map((/** @type {any} */ token) => token.divergence),
      },
    ];
  }
  if (document.kind === 'rl-onoff comparison') {
    return Object.keys(document.tokens).map((name) => ({
      ...asked(document.request),
      id: name,
      measure: document.request.policy?.measure ?? 'js',
      text: document.tokens[name].map((/** @type {any} */ token) => token.text).join(''),
      token_ids: document.tokens[name].map((/** @type {any} */ token) => token.id),
      tokens: document.tokens[name].map((/** @type {any} */ token) => token.text),
      leads: document.tokens[name].map((/** @type {any} */ token) => token.lead).join(''),
      divergences: document.tokens[name].map((/** @type {any} */ token) => token.divergence),
    }));
  }
  if (Array.isArray(document.items) && document.items.some((/** @type {any} */ item) => item?.token_ids)) return document.items;
  if (Array.isArray(document.results)) return document.results;
  return [document];
}

/** @param {any} request */
function asked({ prompt, messages, prompt_ids }) {
  return { ...(prompt === undefined ? {} : { prompt }), ...(messages ? { messages } : {}), ...(prompt_ids ? { prompt_ids } : {}) };
}

/** @param {any} record @param {number} index @returns {Shape} */
export function shapeOf(record, index) {
  const given = record !== null && typeof record === 'object' && !Array.isArray(record) ? record : {};
  const ids = numbers(given.token_ids);
  const prompt_ids = numbers(given.prompt_ids) ?? numbers(given.receipt?.prompt_ids);
  const prompt = text(given.prompt) ?? text(given.question) ?? (Array.isArray(given.messages) ? given.messages.map((/** @type {any} */ message) => `${message?.role}: ${message?.content}`).join('\n') : null);
  /** @type {Record<string, (number | null)[]>} */
  const values = {};
  const add = (/** @type {string} */ name, /** @type {any} */ column) => {
    if (ids && Array.isArray(column) && column.length === ids.length) values[name] = signed(column.map((value) => (typeof value === 'number' ? value : null)), given.negative_infinite?.[name]);
  };
  if (given.divergences) add(text(given.measure) ?? 'js', given.divergences);
  for (const [name, column] of Object.entries({ ...given.signals, ...given.values })) add(name, column);
  if (given.entropy) add('entropy_a', given.entropy);
  const texts = Array.isArray(given.tokens) && given.tokens.length === ids?.length && given.tokens.every((/** @type {any} */ each) => typeof each === 'string') ? given.tokens : null;
  const leads = ids && /^[ab]+$/.test(given.leads ?? '') && given.leads.length === ids.length ? given.leads : null;
  const known = text(given.text) ?? text(given.solution) ?? text(given.completion) ?? (texts ? texts.join('') : null);
  return {
    kind: given.error ? 'refused' : leads ? 'switched' : given.values ? 'divergence' : given.top || given.shard ? 'distributions' : ids ? 'sample' : 'record',
    title: `${given.id ?? index}${given.sample ? `.${given.sample}` : ''}${prompt ? ` ${prompt}` : ''}`,
    prompt,
    text: known,
    ids,
    texts,
    leads,
    values,
    asked: prompt_ids ? { prompt_ids } : Array.isArray(given.messages) ? { messages: given.messages } : prompt ? { prompt } : null,
    facts: factsOf(given),
    reference: given.reference === undefined || given.reference === null ? null : String(given.reference),
    source: record,
  };
}

/** @param {any} given */
function factsOf(given) {
  /** @type {Record<string, any>} */
  const found = {};
  for (const name of ['condition', 'sample', 'reference', 'b_fraction', 'finish_reason', 'seed']) if (given[name] !== undefined && given[name] !== null) found[name] = given[name];
  for (const [name, value] of Object.entries(given.metrics ?? {})) if (typeof value !== 'object') found[name] = value;
  const perplexity = given.summary?.perplexity;
  if (perplexity) Object.assign(found, { 'perplexity of A': perplexity.a, 'perplexity of B': perplexity.b });
  if (given.error) found.error = typeof given.error === 'string' ? given.error : (given.error.detail ?? JSON.stringify(given.error));
  return found;
}

/** @param {any} value */
function text(value) {
  return typeof value === 'string' && value !== '' ? value : null;
}

/** @param {any} value @returns {number[] | null} */
function numbers(value) {
  return Array.isArray(value) && value.length > 0 && value.every((each) => Number.isInteger(each) && each >= 0) ? value : null;
}

/**
 * The records of a file. JSON Lines are kept as lines and read when they are shown: runs are long. A report's page
 * holds its data as JSON in script elements that no browser runs.
 *
 * @param {File} file @returns {Promise<(() => any)[]>} each reads one record
 */
export async function readFile(file) {
  if (/\.html?$/i.test(file.name)) return (await fromPage(file)).map((record) => () => record);
  /** @type {string[]} */
  const lines = [];
  let rest = '';
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split('\n');
    rest = /** @type {string} */ (parts.pop());
    for (const part of parts) if (part.trim() !== '') lines.push(part);
  }
  if (rest.trim() !== '') lines.push(rest);
  if (lines.length > 1 && isJson(lines[0])) return lines.map((line) => () => parsed(line));
  const whole = lines.join('\n');
  if (!isJson(whole)) throw new Error(`${file.name} holds neither JSON nor JSON Lines.`);
  return recordsOf(JSON.parse(whole)).map((record) => () => record);
}

/** @param {File} file */
async function fromPage(file) {
  const page = await file.text();
  const found = [...page.matchAll(/<script\b[^>]*\btype="application\/json"[^>]*>([\s\S]*?)<\/script>/gi)];
  const records = found.filter(([, body]) => isJson(body)).flatMap(([, body]) => recordsOf(JSON.parse(body)));
  if (!records.length) throw new Error(`${file.name} holds no data of ours (JSON in a script element).`);
  return records;
}

/** @param {string} line */
function parsed(line) {
  return isJson(line) ? JSON.parse(line) : { error: `no JSON: ${line.slice(0, 200)}` };
}

/** @param {string} body */
function isJson(body) {
  try {
    JSON.parse(body);
    return true;
  } catch {
    return false;
  }
}
