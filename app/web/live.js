/** Live: one text by both models, its trace, and what another threshold would change. */

import { byId, download, el } from './dom.js';
import { measureName, number, percent, visible } from './format.js';
import { changes, hasThreshold, leads, traceThreshold, watched, withThreshold } from './policy.js';
import { Run } from './run.js';
import { TokensView } from './tokens.js';
import { Trace } from './trace.js';

/** @typedef {import('./tokens.js').Shown} Shown */

export class Live {
  /** @param {import('./main.js').Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.element = byId('live');
    this.view = new TokensView({ label: 'The text, token by token', onPick: (index, pinned) => this.#pick(index, pinned) });
    this.trace = new Trace({
      onThreshold: (value) => this.#imagine(value),
      onPick: (index, pinned) => {
        if (index >= 0 && pinned) this.view.select(index, true);
        this.#pick(index, pinned);
      },
    });
    this.status = el('p', { class: 'status', role: 'status' });
    this.counters = el('dl', { class: 'counters' });
    this.verdict = el('span', { class: 'verdict' });
    this.title = el('h2', { text: 'Divergence' });
    this.imagined = el('p', { class: 'imagined', role: 'status' });
    this.again = el('button', { type: 'button', class: 'primary', text: 'Run again from here', onclick: () => void this.#again() });
    this.whatIf = el('div', { class: 'row spread whatif', hidden: true }, this.imagined, this.again);
    this.save = el('button', { type: 'button', class: 'quiet', text: 'Save JSON', disabled: true, onclick: () => this.#save() });
    this.empty = el('p', { class: 'empty' });
    this.element.replaceChildren(
      el('div', { class: 'card' }, el('div', { class: 'row spread' }, this.counters, this.verdict), this.empty, this.view.element, el('div', { class: 'row spread' }, this.status, this.save)),
      el('div', { class: 'card' }, this.title, this.trace.element, this.whatIf),
    );
    this.empty.append(
      'A writes. Where the two models part by more than the threshold, ',
      el('b', { class: 'ink-b', text: 'B' }),
      ' takes the word, and gives it back when they agree again.',
    );
    /** @type {Run | null} */
    this.run = null;
    /** @type {any} */
    this.body = null;
    /** @type {any} the policy the text shown was written by, as a whole */
    this.policy = null;
    /** @type {any} */
    this.result = null;
    /** @type {number[] | null} */
    this.promptIds = null;
    this.#count();
    this.trace.show('js', this.view.tokens, null);
  }

  /** @param {any} body a request of `/switch-generate` */
  async start(body) {
    this.body = body;
    this.policy = body.policy;
    this.promptIds = body.prompt_ids ?? null;
    this.view.reset(watched(body.policy));
    await this.#write(body, 0);
  }

  stop() {
    this.run?.stop();
  }

  get busy() {
    return this.run !== null;
  }

  /** Write the tokens from `kept` on. @param {any} body @param {number} kept */
  async #write(body, kept) {
    const measure = watched(body.policy);
    this.desk.details.clear();
    this.empty.hidden = true;
    this.whatIf.hidden = true;
    this.view.mark([]);
    this.view.truncate(kept);
    this.view.prefix('kept', kept);
    this.title.textContent = `Divergence: ${measureName(measure)}`;
    this.trace.show(measure, this.view.tokens, hasThreshold(body.policy) ? traceThreshold(body.policy) : null);
    this.result = null;
    this.save.disabled = true;
    this.verdict.textContent = '';
    const run = new Run(body, {
      onTokens: (tokens) => {
        this.view.append(tokens.map((token) => ({ ...token, value: token.divergence })));
        this.#count();
        this.trace.draw();
        this.status.textContent = 'Writing …';
      },
      onRewind: (length) => this.view.truncate(kept + length),
      onWait: (reason) => {
        this.status.textContent = reason;
      },
    });
    this.run = run;
    this.#count();
    this.status.textContent = 'Asked …';
    try {
      this.result = await run.finished();
      this.promptIds = this.result.receipt.prompt_ids;
      this.status.textContent = `Done (${this.result.finish_reason === 'length' ? 'the most tokens asked for' : 'the text ended'}). Seed ${this.result.seed}.`;
      this.#judge();
    } catch (error) {
      if (!run.stopped) {
        this.status.textContent = `Broken off after ${this.view.tokens.length} tokens.`;
        throw error;
      }
      this.status.textContent = `Stopped after ${this.view.tokens.length} tokens.`;
    } finally {
      this.run = null;
      this.save.disabled = this.view.tokens.length === 0;
      this.#count(run);
    }
  }

  /** @param {Run | null} [run] */
  #count(run = this.run) {
    const tokens = this.view.tokens;
    const byB = tokens.filter(({ lead }) => lead === 'b').length;
    const switches = tokens.filter(({ lead }, i) => lead !== (tokens[i - 1]?.lead ?? 'a')).length;
    const usage = this.result?.usage;
    const values = {
      tokens: String(tokens.length),
      'by B': tokens.length ? `${byB} (${percent(byB / tokens.length)})` : '0',
      switches: String(switches),
      'tokens/s': Number.isFinite(run?.rate) ? number(Math.round(/** @type {Run} */ (run).rate)) : '–',
      'lookahead accepted': usage?.drafted ? `${usage.accepted} of ${usage.drafted}` : '–',
      'passes A, B': usage ? `${usage.a_forwards}, ${usage.b_forwards}` : '–',
    };
    this.counters.replaceChildren(
      ...Object.entries(values).map(([name, value]) => el('div', {}, el('dt', { text: name }), el('dd', { text: value, 'data-counter': name }))),
    );
  }

  #judge() {
    const reference = this.desk.reference();
    if (reference === null) return;
    const right = this.view.tokens.map(({ text }) => text).join('').trimEnd().endsWith(reference);
    this.verdict.textContent = right ? `✓ ends with ${reference}` : `✗ should end with ${reference}`;
    this.verdict.className = `verdict ${right ? 'right' : 'wrong'}`;
  }

  /** @param {number} index @param {boolean} pinned */
  #pick(index, pinned) {
    this.trace.point(index);
    this.view.point(index);
    const context = this.context();
    if (context !== null) this.desk.details.show(context, index, pinned);
  }

  /** @returns {import('./details.js').Context | null} */
  context() {
    if (this.body === null) return null;
    const { a, b, prompt, messages } = this.body;
    const tokens = this.view.tokens;
    return {
      a,
      b,
      prompt: this.promptIds ? { prompt_ids: this.promptIds } : messages ? { messages } : { prompt },
      ids: tokens.map(({ id }) => id),
      texts: tokens.map(({ text }) => text),
      leads: tokens.map(({ lead }) => lead).join(''),
    };
  }

  /** Mark what another threshold would change. @param {number} value */
  #imagine(value) {
    if (this.policy === null) return;
    const policy = withThreshold(this.policy, value);
    this.desk.controls.setThreshold(policy.on);
    const tokens = this.view.tokens;
    const now = tokens.map(({ lead }) => lead).join('');
    const found = changes(now, leads(policy, tokens.map((token) => token.value)));
    this.view.mark(found);
    this.trace.mark(found);
    this.whatIf.hidden = false;
    this.again.disabled = found.length === 0 || this.busy;
    this.imagined.textContent = found.length
      ? `At ${number(value)}, ${found.length === 1 ? 'one token' : `${found.length} tokens`} would change hands; the first is token ${found[0]}, “${visible(tokens[found[0]].text)}”.`
      : `At ${number(value)}, nothing would change.`;
  }

  /**
   * Write again under the threshold the line stands at. Up to the first token that changes hands the text stays as it
   * is; from there it is written anew, with the same noise and whatever the rule remembers of the tokens before.
   */
  async #again() {
    const policy = withThreshold(this.policy, this.trace.threshold ?? 0);
    const kept = this.view.tokens.slice(0, Math.min(...this.view.marked));
    const { sampling } = this.body;
    this.policy = policy;
    this.body = { ...this.body, policy };
    const given = { token_ids: kept.map(({ id }) => id), leads: kept.map(({ lead }) => lead).join('') };
    const rest = { given, sampling: { ...sampling, max_tokens: sampling.max_tokens - kept.length } };
    await this.desk.busy(() => this.#write(kept.length ? { ...this.body, ...rest } : this.body, kept.length));
  }

  #save() {
    const document = {
      kind: 'rl-onoff switched generation',
      request: this.body,
      response: this.result,
      measure: this.view.measure,
      tokens: this.view.tokens.map(({ id, text, lead, value }, index) => ({ index, id, text, lead, divergence: value })),
    };
    download('switched.json', JSON.stringify(document, null, 1));
  }
}
