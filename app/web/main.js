/** The page: which view is open, which pair is spoken to, what went wrong. */

import { Problem, get, onKeyNeeded } from './api.js';
import { Compare } from './compare.js';
import { Controls } from './controls.js';
import { Details } from './details.js';
import { byId, el } from './dom.js';
import { Live } from './live.js';
import { Runs } from './runs.js';
import { Score } from './score.js';

/**
 * What the views share.
 *
 * @typedef {object} Desk
 * @property {Details} details
 * @property {Controls} controls
 * @property {() => { a: string, b: string }} names the models in the roles they have now
 * @property {() => string | null} reference the answer to the problem, if it is one of the demo set
 * @property {(work: () => Promise<void>) => Promise<void>} busy runs work; shows what fails
 * @property {(prompt: string, solution: string) => void} score opens Score with these
 */

const VIEWS = ['live', 'compare', 'score', 'runs'];
const POLL_MS = 1500;

/** @type {{ name: string, a: string, b: string }[]} */
let pairs = [];
/** @type {Record<string, { prompt: string, reference?: string }[]>} */
let examples = {};
let swapped = false;
let view = 'live';
let working = false;
let started = false;

const controls = new Controls(byId('policy'), byId('sampling'), () => {});
/** @type {Desk} */
const desk = { details: new Details(byId('details')), controls, names, reference, busy, score: openScore };
const live = new Live(desk);
const compare = new Compare(desk);
const score = new Score(desk);
new Runs(desk);

/** @param {string} prompt @param {string} solution */
function openScore(prompt, solution) {
  location.hash = '#score';
  score.fill(prompt, solution);
  void busy(() => score.start());
}

// ------------------------------------------------------------------------------------------- what is spoken to

function pair() {
  return pairs.find(({ name }) => name === byId('pair').value) ?? null;
}

function names() {
  const chosen = pair();
  if (chosen === null) throw new Error('No pair is served yet.');
  return swapped ? { a: chosen.b, b: chosen.a } : { a: chosen.a, b: chosen.b };
}

/** Models and their state, and again while one is not ready. */
async function loadModels() {
  const { models, pairs: served } = await get('/models');
  const before = byId('pair').value;
  pairs = served;
  byId('pair').replaceChildren(...pairs.map(({ name }) => el('option', { value: name, text: name })));
  if (pairs.some(({ name }) => name === before)) byId('pair').value = before;
  const states = models.filter((/** @type {any} */ card) => card.pair === pair()?.name).map((/** @type {any} */ card) => card.state);
  const state = states.find((/** @type {string} */ each) => each !== 'ready') ?? 'ready';
  byId('pair-state').textContent = state;
  byId('pair-state').className = `state ${state}`;
  showPair();
  if (models.some((/** @type {any} */ card) => card.state !== 'ready')) setTimeout(() => void watched(), POLL_MS);
}

/** All that is asked before anything is; again, until the service answers. */
async function watched() {
  try {
    await loadModels();
    if (started) return;
    ({ pairs: examples } = await get('/examples'));
    byId('version').textContent = `rl-onoff ${(await get('/version')).version}`;
    started = true;
    showPair();
  } catch (error) {
    byId('pair-state').textContent = 'no answer';
    byId('pair-state').className = 'state lost';
    if (error instanceof Problem) notice(error.message, () => void watched());
    else setTimeout(() => void watched(), POLL_MS);
  }
}

function showPair() {
  const chosen = pair();
  if (chosen === null) return;
  const { a, b } = names();
  byId('name-a').textContent = a;
  byId('name-b').textContent = b;
  const offered = examples[chosen.name] ?? [];
  const select = byId('example');
  if (select.dataset.pair === chosen.name && select.options.length === offered.length + 1) return;
  select.dataset.pair = chosen.name;
  select.replaceChildren(
    el('option', { value: '', text: 'your own' }),
    ...offered.map(({ prompt }, index) => el('option', { value: String(index), text: prompt.slice(0, 60) })),
  );
  // Examples may come late: whoever stands in the field by then writes something of his own.
  if (byId('prompt').value === '' && document.activeElement !== byId('prompt') && offered.length) chooseExample(0);
}

// ------------------------------------------------------------------------------------------- the problem

/** @param {number} index */
function chooseExample(index) {
  const offered = examples[pair()?.name ?? ''] ?? [];
  if (!offered[index]) return;
  byId('example').value = String(index);
  byId('prompt').value = offered[index].prompt;
  showReference();
}

function reference() {
  const chosen = (examples[pair()?.name ?? ''] ?? [])[Number(byId('example').value || -1)];
  return chosen && chosen.prompt === byId('prompt').value ? (chosen.reference ?? null) : null;
}

function showReference() {
  const answer = reference();
  byId('reference').textContent = answer === null ? '' : `answer: ${answer}`;
}

function request() {
  const prompt = byId('prompt').value;
  return {
    ...names(),
    ...(byId('chat').checked ? { messages: [{ role: 'user', content: prompt }] } : { prompt }),
    policy: controls.policy,
    ...controls.request,
  };
}

/** @param {SubmitEvent} event */
function onGo(event) {
  event.preventDefault();
  if (working) return;
  void busy(() => (view === 'compare' ? compare.start(request()) : live.start(request())));
}

/** @param {() => Promise<void>} work */
async function busy(work) {
  hideNotice();
  working = true;
  byId('stop').disabled = false;
  byId('go').disabled = true;
  try {
    await work();
  } catch (error) {
    showError(/** @type {Error} */ (error), () => void busy(work));
  } finally {
    working = false;
    byId('stop').disabled = true;
    byId('go').disabled = false;
  }
}

// ------------------------------------------------------------------------------------------- what went wrong

/** @param {Error} error @param {() => void} retry */
function showError(error, retry) {
  if (error instanceof Problem) {
    const fields = error.errors.map(({ field, message }) => `${field}: ${message}`).join('; ');
    const id = error.requestId ? ` (request ${error.requestId})` : '';
    notice(`${error.title}: ${fields && !error.message.includes(fields) ? `${error.message} ${fields}` : error.message}${id}`, error.retryable ? retry : undefined);
  } else notice(error.message, retry);
}

/** @param {string} text @param {() => void} [retry] */
function notice(text, retry) {
  byId('notice-text').textContent = text;
  const action = byId('notice-action');
  action.hidden = retry === undefined;
  action.textContent = 'Try again';
  action.onclick = () => {
    hideNotice();
    retry?.();
  };
  byId('notice').hidden = false;
}

function hideNotice() {
  byId('notice').hidden = true;
}

// ------------------------------------------------------------------------------------------- views, theme, key

function route() {
  const asked = location.hash.slice(1);
  view = VIEWS.includes(asked) ? asked : 'live';
  for (const name of VIEWS) byId(name).hidden = name !== view;
  const bench = view === 'live' || view === 'compare';
  desk.details.clear();
  byId('workbench').classList.toggle('bare', !bench);
  byId('go').textContent = view === 'compare' ? 'Compare' : 'Write';
  for (const link of document.querySelectorAll('nav a')) {
    if (link.getAttribute('href') === `#${view}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `rl-onoff · ${view}`;
}

const THEMES = ['auto', 'light', 'dark'];

function nextTheme() {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? 'auto') + 1) % THEMES.length];
  root.dataset.theme = next;
  byId('theme').textContent = `Theme: ${next}`;
  document.dispatchEvent(new Event('theme'));
}

/** @param {boolean} refused */
function askKey(refused) {
  const dialog = byId('key-dialog');
  byId('key-title').textContent = refused ? 'The service does not know this key' : 'This service asks for a key';
  byId('key').value = '';
  dialog.showModal();
  return new Promise((/** @type {(key: string | null) => void} */ resolve) => {
    byId('key-form').onsubmit = () => resolve(byId('key').value);
    dialog.oncancel = () => resolve(null);
    byId('key-cancel').onclick = () => {
      dialog.close();
      resolve(null);
    };
  }).finally(() => {
    byId('key').value = '';
  });
}

onKeyNeeded(askKey);
addEventListener('hashchange', route);
byId('composer').addEventListener('submit', onGo);
byId('prompt').addEventListener('input', showReference);
byId('prompt').addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) byId('composer').requestSubmit();
});
byId('stop').addEventListener('click', () => {
  live.stop();
  compare.stop();
});
byId('example').addEventListener('change', () => chooseExample(Number(byId('example').value || -1)));
byId('example-next').addEventListener('click', () => chooseExample(Number(byId('example').value || -1) + 1));
byId('pair').addEventListener('change', () => void watched());
byId('swap').addEventListener('click', () => {
  swapped = !swapped;
  byId('swap').setAttribute('aria-pressed', String(swapped));
  showPair();
});
byId('theme').addEventListener('click', nextTheme);
byId('notice-close').addEventListener('click', hideNotice);
route();
void watched();
