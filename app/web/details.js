/** One token looked at closely: the ten best of A and of B side by side, and how far apart the two are there. */

import { get, post } from './api.js';
import { el } from './dom.js';
import { number, visible } from './format.js';

/**
 * What a token stands in: the models, the prompt (as ids once they are known) and the text's tokens.
 *
 * @typedef {object} Context
 * @property {string} a
 * @property {string} b
 * @property {any} prompt `{prompt}`, `{messages}` or `{prompt_ids}`
 * @property {number[]} ids
 * @property {string[]} texts
 * @property {string} [leads]
 */

const MEASURES = ['js', 'kl_ab', 'kl_ba', 'entropy_a', 'entropy_b', 'delta_logp', 'rank_of_b_in_a', 'rank_of_a_in_b'];
const BEST = 10;
const HOVER_MS = 120;

/** @param {Context} context @param {number} index */
function item({ prompt, ids }, index) {
  if (prompt.prompt_ids) return { prompt_ids: [...prompt.prompt_ids, ...ids.slice(0, index)], solution_ids: [ids[index]] };
  return { ...prompt, solution_ids: ids.slice(0, index + 1) };
}

export class Details {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.pinned = false;
    this.timer = 0;
    /** @type {AbortController | null} */
    this.running = null;
    this.shown = '';
    /** @type {Map<string, any>} */
    this.known = new Map();
    /** @type {Map<string, number>} */
    this.vocabulary = new Map();
    this.clear();
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && this.pinned) this.#pin(false);
    });
  }

  clear() {
    this.#pin(false);
    this.running?.abort();
    clearTimeout(this.timer);
    this.shown = '';
    this.element.replaceChildren(
      el('h2', { text: 'Token' }),
      el('p', { class: 'muted' }, 'Point at a token, or move to one with the arrow keys: what A and what B would have written there. Enter or a click pins it; n and p go from switch to switch.'),
    );
  }

  /** @param {Context} context @param {number} index @param {boolean} pinned */
  show(context, index, pinned) {
    if (index < 0 || (this.pinned && !pinned)) return;
    this.#pin(pinned);
    const key = JSON.stringify([context.a, context.b, item(context, index)]);
    if (key === this.shown) return;
    this.shown = key;
    clearTimeout(this.timer);
    this.running?.abort();
    const known = this.known.get(key);
    if (known) this.#draw(context, index, known);
    else this.timer = window.setTimeout(() => void this.#load(context, index, key), pinned ? 0 : HOVER_MS);
  }

  /** @param {boolean} pinned */
  #pin(pinned) {
    this.pinned = pinned;
    this.element.classList.toggle('pinned', pinned);
  }

  /** @param {Context} context @param {number} index @param {string} key */
  async #load(context, index, key) {
    this.running = new AbortController();
    const options = { signal: this.running.signal };
    this.element.setAttribute('aria-busy', 'true');
    const items = [item(context, index)];
    try {
      const top = async (/** @type {string} */ model) => {
        const top_k = Math.min(BEST, await this.#vocabularyOf(model));
        const answer = await post('/distributions', { model, items, top_k, texts: true }, options);
        const [{ top: rows, entropy, token_logprobs }] = answer.items;
        return { ...rows.at(-1), entropy: entropy.at(-1), logprob: token_logprobs.at(-1) };
      };
      const [a, b, apart] = await Promise.all([
        top(context.a),
        top(context.b),
        post('/divergence', { a: context.a, b: context.b, items, measures: MEASURES, summary: false }, options),
      ]);
      const values = Object.fromEntries(MEASURES.map((name) => [name, apart.items[0].values[name].at(-1)]));
      const found = { a, b, values };
      this.known.set(key, found);
      if (this.known.size > 500) this.known.delete(/** @type {string} */ (this.known.keys().next().value));
      if (this.shown === key) this.#draw(context, index, found);
    } catch (error) {
      if (options.signal.aborted) return;
      this.shown = '';
      this.element.removeAttribute('aria-busy');
      this.element.replaceChildren(
        el('h2', { text: `Token ${index}` }),
        el('p', { class: 'wrong', role: 'alert', text: /** @type {Error} */ (error).message }),
      );
    }
  }

  /** @param {string} model */
  async #vocabularyOf(model) {
    if (!this.vocabulary.has(model)) {
      for (const card of (await get('/models')).models) if (card.vocab_size) this.vocabulary.set(card.name, card.vocab_size);
    }
    return this.vocabulary.get(model) ?? BEST;
  }

  /** @param {Context} context @param {number} index @param {any} found */
  #draw(context, index, { a, b, values }) {
    const id = context.ids[index];
    const text = context.texts[index] || (a.ids.includes(id) ? a.tokens[a.ids.indexOf(id)] : b.tokens[b.ids.indexOf(id)]) || '';
    const lead = context.leads?.[index];
    this.element.removeAttribute('aria-busy');
    this.element.replaceChildren(
      el(
        'h2',
        {},
        `Token ${index} `,
        el('code', { class: `chip ${lead ?? ''}`, text: visible(text) }),
        el('small', { class: 'muted', text: lead ? ` by ${lead.toUpperCase()}` : '' }),
      ),
      el('div', { class: 'rows' }, this.#table('a', context.a, a, id), this.#table('b', context.b, b, id)),
      el(
        'dl',
        { class: 'facts' },
        ...fact('JS', values.js),
        ...fact('Δ log p (B − A)', values.delta_logp),
        ...fact('KL(A‖B)', values.kl_ab),
        ...fact('KL(B‖A)', values.kl_ba),
        ...fact('entropy of A', values.entropy_a),
        ...fact('entropy of B', values.entropy_b),
        ...fact('rank of B’s best in A', values.rank_of_b_in_a),
        ...fact('rank of A’s best in B', values.rank_of_a_in_b),
        ...fact('rank of this token in A', rank(a.ids, id)),
        ...fact('rank of this token in B', rank(b.ids, id)),
      ),
    );
  }

  /** @param {'a' | 'b'} side @param {string} model @param {any} row @param {number} id the token that was written */
  #table(side, model, row, id) {
    const lines = row.ids.map((/** @type {number} */ other, /** @type {number} */ rank) => {
      const p = row.values[rank] === null ? 0 : Math.exp(row.values[rank]);
      const bar = el('span', { class: 'bar', 'aria-hidden': 'true' });
      bar.style.width = `${(100 * p).toFixed(2)}%`;
      return el(
        'tr',
        { class: other === id ? 'written' : null },
        el('th', { scope: 'row' }, bar, el('code', { text: visible(row.tokens[rank]) }), other === id ? el('span', { class: 'sr', text: ' (written)' }) : null),
        el('td', { text: probability(p) }),
      );
    });
    return el(
      'table',
      { class: `top ${side}` },
      el('caption', {}, el('b', { class: `ink-${side}`, text: side.toUpperCase() }), ` ${model}`),
      el('thead', { class: 'sr' }, el('tr', {}, el('th', { scope: 'col', text: 'token' }), el('th', { scope: 'col', text: 'probability' }))),
      el('tbody', {}, ...lines),
    );
  }
}

/** @param {number} p */
function probability(p) {
  return p >= 0.0001 ? p.toFixed(4) : p === 0 ? '0' : p.toExponential(0);
}

/** @param {number[]} ids @param {number} id */
function rank(ids, id) {
  const place = ids.indexOf(id);
  return place < 0 ? `> ${ids.length}` : place + 1;
}

/** @param {string} name @param {number | string | null} value */
function fact(name, value) {
  return [el('dt', { text: name }), el('dd', { text: typeof value === 'string' ? value : number(value) })];
}
