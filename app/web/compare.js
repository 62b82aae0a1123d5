/** Compare: the same prompt and noise under A, under both by the policy, and under B, aligned at the first difference. */

import { byId, download, el } from './dom.js';
import { percent } from './format.js';
import { watched } from './policy.js';
import { Run } from './run.js';
import { TokensView } from './tokens.js';

const COLUMNS = /** @type {const} */ (['a', 'switched', 'b']);
const TITLES = { a: 'A alone', switched: 'Switched', b: 'B alone' };

/** @typedef {typeof COLUMNS[number]} Name */

export class Compare {
  /** @param {import('./main.js').Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.columns = Object.fromEntries(COLUMNS.map((name) => [name, new Column(name, desk)]));
    this.common = new TokensView({ label: 'What all three begin with', onPick: (index, pinned) => this.columns.switched.pick(index, pinned) });
    this.difference = el('p', { class: 'status', role: 'status' }, 'The same prompt and the same noise, three times: what differs is who leads.');
    this.save = el('button', { type: 'button', class: 'quiet', text: 'Save JSON', disabled: true, onclick: () => this.#save() });
    byId('compare').replaceChildren(
      el('div', { class: 'card' }, el('div', { class: 'row spread' }, el('h2', { text: 'In common' }), this.save), this.common.element, this.difference),
      el('div', { class: 'columns' }, ...COLUMNS.map((name) => this.columns[name].element)),
    );
    /** @type {any} */
    this.body = null;
    this.shared = 0;
  }

  /** @param {any} body a request of `/switch-generate` */
  async start(body) {
    this.body = body;
    this.shared = 0;
    this.save.disabled = true;
    this.desk.details.clear();
    this.common.reset(watched(body.policy));
    this.difference.textContent = 'Asked …';
    const measure = body.policy.kind === 'divergence' ? (body.policy.measure ?? 'js') : 'js';
    const bodies = {
      a: { ...body, policy: { kind: 'always_a' }, measures: [measure] },
      switched: { ...body, measures: [measure] },
      b: { ...body, policy: { kind: 'always_b' }, measures: [measure] },
    };
    const outcomes = await Promise.allSettled(
      COLUMNS.map((name) => this.columns[name].start(bodies[name], () => this.#align())),
    );
    this.#align(true);
    this.save.disabled = false;
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed && !COLUMNS.some((name) => this.columns[name].run?.stopped)) throw /** @type {any} */ (failed).reason;
  }

  stop() {
    for (const name of COLUMNS) this.columns[name].run?.stop();
  }

  /** Move what all three begin with to the top. @param {boolean} [final] */
  #align(final = false) {
    const texts = COLUMNS.map((name) => this.columns[name].view.tokens);
    const shortest = Math.min(...texts.map((tokens) => tokens.length));
    let shared = Math.min(this.shared, shortest);
    while (shared < shortest && texts.every((tokens) => tokens[shared].id === texts[0][shared].id)) shared += 1;
    this.common.truncate(shared);
    this.common.append(texts[1].slice(this.common.tokens.length, shared).map((token) => ({ ...token })));
    this.shared = shared;
    for (const name of COLUMNS) this.columns[name].view.prefix('common', shared);
    if (final) {
      const same = texts.every((tokens) => tokens.length === shared);
      const [a, switched, b] = texts;
      this.difference.textContent = same
        ? 'All three texts are the same.'
        : `First difference at token ${shared}. Switched leaves A ${place(switched, a)} and B ${place(switched, b)}.`;
    } else this.difference.textContent = 'Writing …';
  }

  #save() {
    const document = {
      kind: 'rl-onoff comparison',
      request: this.body,
      first_difference: this.shared,
      responses: Object.fromEntries(COLUMNS.map((name) => [name, this.columns[name].result])),
      tokens: Object.fromEntries(
        COLUMNS.map((name) => [name, this.columns[name].view.tokens.map(({ id, text, lead, value }) => ({ id, text, lead, divergence: value }))]),
      ),
    };
    download('comparison.json', JSON.stringify(document, null, 1));
  }
}

/** Where one text leaves another. @param {{ id: number }[]} one @param {{ id: number }[]} other */
function place(one, other) {
  const at = one.findIndex((token, index) => token.id !== other[index]?.id);
  if (at >= 0) return `at token ${at}`;
  return other.length > one.length ? `at token ${one.length}` : 'nowhere';
}

class Column {
  /** @param {Name} name @param {import('./main.js').Desk} desk */
  constructor(name, desk) {
    this.desk = desk;
    this.view = new TokensView({ label: TITLES[name], onPick: (index, pinned) => this.pick(index, pinned) });
    this.facts = el('p', { class: 'status' });
    this.verdict = el('span', { class: 'verdict' });
    this.element = el(
      'section',
      { class: `card column ${name}`, 'aria-label': TITLES[name] },
      el('div', { class: 'row spread' }, el('h2', { text: TITLES[name] }), this.verdict),
      this.view.element,
      this.facts,
    );
    /** @type {Run | null} */
    this.run = null;
    /** @type {any} */
    this.result = null;
    /** @type {any} */
    this.body = null;
  }

  /** @param {any} body @param {() => void} onTokens */
  async start(body, onTokens) {
    this.body = body;
    this.result = null;
    this.verdict.textContent = '';
    this.facts.textContent = '';
    this.view.reset(watched(body.policy));
    const run = new Run(body, {
      onTokens: (tokens) => {
        this.view.append(tokens.map((token) => ({ ...token, value: token.divergence })));
        onTokens();
      },
      onRewind: (length) => this.view.truncate(length),
      onWait: (reason) => {
        this.facts.textContent = reason;
      },
    });
    this.run = run;
    try {
      this.result = await run.finished();
      const { b_fraction, usage, signals } = this.result;
      const values = Object.values(signals)[0];
      const [measure] = body.measures;
      if (measure !== this.view.measure) this.view.revalue(measure, /** @type {any} */ (values));
      this.facts.textContent = `${usage.completion_tokens} tokens, ${percent(b_fraction)} by B, ${Math.round(run.rate)} tokens/s`;
      this.#judge();
    } catch (error) {
      this.facts.textContent = run.stopped ? 'Stopped.' : /** @type {Error} */ (error).message;
      throw error;
    }
  }

  #judge() {
    const reference = this.desk.reference();
    if (reference === null) return;
    const right = this.result.text.trimEnd().endsWith(reference);
    this.verdict.textContent = right ? `✓ ${reference}` : `✗ not ${reference}`;
    this.verdict.className = `verdict ${right ? 'right' : 'wrong'}`;
  }

  /** @param {number} index @param {boolean} pinned */
  pick(index, pinned) {
    const { a, b, prompt, messages } = this.body;
    const ids = this.result?.receipt.prompt_ids;
    const tokens = this.view.tokens;
    this.view.point(index);
    this.desk.details.show(
      {
        a,
        b,
        prompt: ids ? { prompt_ids: ids } : messages ? { messages } : { prompt },
        ids: tokens.map(({ id }) => id),
        texts: tokens.map(({ text }) => text),
        leads: tokens.map(({ lead }) => lead).join(''),
      },
      index,
      pinned,
    );
  }
}
