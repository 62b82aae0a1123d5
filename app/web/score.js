/** Score: a prompt and a solution as a heatmap of any measure, with its statistics. */

import { post } from './api.js';
import { byId, download, el } from './dom.js';
import { heatmap, histogram, savePng, saveSvg } from './figure.js';
import { MEASURES, measureName, number, percent, signed } from './format.js';
import { TokensView } from './tokens.js';

export class Score {
  /** @param {import('./main.js').Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.view = new TokensView({ label: 'The solution, token by token', onPick: (index, pinned) => this.#pick(index, pinned) });
    this.prompt = el('textarea', { id: 'score-prompt', rows: '2', required: true, spellcheck: 'false' });
    this.solution = el('textarea', { id: 'score-solution', rows: '4', required: true, spellcheck: 'false' });
    this.chat = el('input', { type: 'checkbox', id: 'score-chat' });
    this.units = el('select', { id: 'score-units' }, el('option', { value: 'nats', text: 'nats' }), el('option', { value: 'bits', text: 'bits' }));
    this.temperature = el('input', { id: 'score-temperature', type: 'number', step: 'any', value: '1' });
    this.more = el('input', { id: 'score-more', type: 'text', placeholder: 'renyi:0.5 topk_overlap:10' });
    this.measure = el('select', { id: 'score-measure', onchange: () => this.#show() });
    this.statistics = el('div', { class: 'statistics' });
    this.picture = el('div', {});
    this.output = el(
      'div',
      { class: 'card', hidden: true },
      el(
        'div',
        { class: 'row spread' },
        el('span', { class: 'row' }, el('label', { for: 'score-measure', class: 'muted', text: 'Measure' }), this.measure),
        el(
          'span',
          { class: 'row' },
          ...[
            ['JSON', () => this.#saveJson()],
            ['CSV', () => this.#saveCsv()],
            ['SVG', () => saveSvg(this.#figure(), 'divergence')],
            ['PNG', () => void this.desk.busy(() => savePng(this.#figure(), 'divergence'))],
          ].map(([name, save]) => el('button', { type: 'button', class: 'quiet', text: `Save ${name}`, onclick: save })),
        ),
      ),
      this.view.element,
      this.statistics,
      this.picture,
    );
    this.form = el(
      'form',
      { class: 'card composer', autocomplete: 'off' },
      field('score-prompt', 'Prompt', this.prompt),
      field('score-solution', 'Solution, scored after it', this.solution),
      el(
        'div',
        { class: 'row spread' },
        el(
          'span',
          { class: 'row options' },
          el('label', { class: 'check' }, this.chat, 'prompt as a chat message'),
          ...labelled('score-units', 'units', this.units),
          ...labelled('score-temperature', 'temperature', this.temperature),
          ...labelled('score-more', 'more measures', this.more),
        ),
        el('button', { type: 'submit', class: 'primary', text: 'Score' }),
      ),
    );
    this.form.addEventListener('submit', (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      void this.desk.busy(() => this.start());
    });
    byId('score').replaceChildren(this.form, this.output);
    /** @type {any} */
    this.body = null;
    /** @type {any} */
    this.response = null;
  }

  /** Put a problem and an answer into the form. @param {string} prompt @param {string} solution */
  fill(prompt, solution) {
    this.prompt.value = prompt;
    this.solution.value = solution;
  }

  async start() {
    const prompt = this.prompt.value;
    const more = this.more.value.split(/[\s,]+/).filter(Boolean);
    const item = { ...(this.chat.checked ? { messages: [{ role: 'user', content: prompt }] } : { prompt }), solution: this.solution.value };
    const body = {
      ...this.desk.names(),
      items: [item],
      measures: [...new Set([...Object.keys(MEASURES), ...more])],
      units: this.units.value,
      temperature: Number(this.temperature.value),
    };
    this.response = await post('/divergence', body);
    this.body = body;
    const before = this.measure.value;
    this.measure.replaceChildren(...body.measures.map((name) => el('option', { value: name, text: measureName(name) })));
    if (body.measures.includes(before)) this.measure.value = before;
    this.output.hidden = false;
    this.desk.details.clear();
    const [{ token_ids, tokens }] = this.response.items;
    const values = this.#values();
    this.view.reset(this.measure.value, token_ids.map((/** @type {number} */ id, /** @type {number} */ i) => ({ id, text: tokens[i], value: values[i] })));
    this.#show();
  }

  /** @returns {(number | null)[]} */
  #values() {
    const { values, negative_infinite: below } = this.response.items[0];
    return signed(values[this.measure.value], below?.[this.measure.value]);
  }

  #show() {
    const measure = this.measure.value;
    const values = this.#values();
    // Shades are defined in nats.
    const nats = this.body.units === 'bits' && /^(js|kl_|entropy|delta_logp|renyi)/.test(measure);
    this.view.revalue(measure, nats ? values.map((value) => (value === null ? null : value * Math.LN2)) : values);
    const { measures, top1_agreement, perplexity, positions } = this.response.items[0].summary;
    const found = measures[measure];
    const below = (100 * found.negative_infinite) / found.count;
    /** @param {string} p of an infinite percentile the sign is told by the share of -inf */
    const cut = (p) => number(found.percentiles[p] ?? (below >= Number(p) ? -Infinity : null));
    const unit = /^(js|kl_|entropy|delta_logp|renyi)/.test(measure) ? ` ${this.body.units}` : '';
    this.statistics.replaceChildren(
      facts({
        tokens: positions,
        mean: `${number(found.mean)}${error(found.stderr)}${unit}`,
        ...(found.std === null ? {} : { 'std. deviation': number(found.std) }),
        minimum: number(below ? -Infinity : found.min),
        median: cut('50'),
        '90th percentile': cut('90'),
        '99th percentile': cut('99'),
        maximum: number(below === 100 ? -Infinity : found.max),
        infinite: found.infinite,
      }),
      facts({
        'same best token': percent(top1_agreement),
        'perplexity of A': `${number(perplexity.a)}${error(perplexity.a_stderr)}`,
        'perplexity of B': `${number(perplexity.b)}${error(perplexity.b_stderr)}`,
        'ratio B/A': `${number(perplexity.ratio)}${error(perplexity.ratio_stderr)}`,
      }),
    );
    this.picture.replaceChildren(el('h3', { class: 'muted', text: `Tokens by ${measureName(measure)}${unit && `, ${this.body.units}`} (logarithmic counts)` }), histogram(values, measureName(measure)));
  }

  /** @param {number} index @param {boolean} pinned */
  #pick(index, pinned) {
    const { a, b, items } = this.body;
    const { solution, ...prompt } = items[0];
    const { token_ids, tokens } = this.response.items[0];
    this.view.point(index);
    this.desk.details.show({ a, b, prompt, ids: token_ids, texts: tokens }, index, pinned);
  }

  #figure() {
    const { a, b } = this.response;
    return heatmap(this.view.tokens, this.measure.value, `${measureName(this.measure.value)} between ${a} (A) and ${b} (B)`);
  }

  #saveJson() {
    const document = { kind: 'rl-onoff score', request: this.body, response: this.response };
    download('divergence.json', JSON.stringify(document, null, 1));
  }

  #saveCsv() {
    const { token_ids, tokens, values } = this.response.items[0];
    const names = Object.keys(values);
    const { infinite = {}, negative_infinite: below = {} } = this.response.items[0];
    const rows = token_ids.map((/** @type {number} */ id, /** @type {number} */ i) => [
      i,
      id,
      tokens[i],
      ...names.map((name) => values[name][i] ?? (below[name]?.includes(i) ? '-inf' : infinite[name]?.includes(i) ? 'inf' : '')),
    ]);
    download('divergence.csv', csv([['position', 'token_id', 'token', ...names], ...rows]), 'text/csv');
  }
}

/** RFC 4180. @param {unknown[][]} rows */
function csv(rows) {
  const cell = (/** @type {unknown} */ value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return rows.map((row) => row.map(cell).join(',')).join('\r\n') + '\r\n';
}

/** @param {string} id @param {string} text @param {HTMLElement} input */
function field(id, text, input) {
  return el('div', { class: 'stack' }, el('label', { for: id, class: 'title', text }), input);
}

/** @param {string} id @param {string} text @param {HTMLElement} input */
function labelled(id, text, input) {
  return [el('label', { for: id, class: 'muted', text }), input];
}

/** A standard error, where there is one. @param {number | null} value */
function error(value) {
  return value === null ? '' : ` ± ${number(value)}`;
}

/** @param {Record<string, string | number>} values */
function facts(values) {
  return el('dl', { class: 'facts' }, ...Object.entries(values).flatMap(([name, value]) => [el('dt', { text: name }), el('dd', { text: String(value) })]));
}
