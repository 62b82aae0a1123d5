/**
 * A text as its tokens: coloured by leader, shaded by a value, walked with the arrow keys.
 *
 * One tab stop; the arrows move within, Enter or a click selects. Tokens are appended, never rebuilt: thousands stay
 * light.
 */

import { el } from './dom.js';
import { number, shade, shortName, visible } from './format.js';

/**
 * @typedef {{ id: number, text: string, lead?: 'a' | 'b' | null, value: number | null }} Shown
 */

const LEVELS = 12;

export class TokensView {
  /**
   * @param {object} options
   * @param {string} options.label for screen readers
   * @param {(index: number, pinned: boolean) => void} [options.onPick] a token was focused, pointed at or selected
   */
  constructor({ label, onPick = () => {} }) {
    this.element = el('div', { class: 'tokens', role: 'listbox', 'aria-label': label, 'aria-orientation': 'horizontal' });
    /** @type {Shown[]} */
    this.tokens = [];
    this.measure = 'js';
    this.onPick = onPick;
    this.current = -1;
    /** @type {HTMLElement[]} */
    this.nodes = [];
    /** @type {Set<number>} */
    this.marked = new Set();
    this.element.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this.#onKey(event));
    this.element.addEventListener('click', (/** @type {MouseEvent} */ event) => this.#onPointer(event, true));
    this.element.addEventListener('mouseover', (/** @type {MouseEvent} */ event) => this.#onPointer(event, false));
    this.element.addEventListener('focusin', (/** @type {FocusEvent} */ event) => {
      const index = this.#indexOf(event.target);
      if (index >= 0) this.#pick(index, false);
    });
  }

  /** @param {string} measure @param {Shown[]} [tokens] */
  reset(measure, tokens = []) {
    this.truncate(0);
    this.measure = measure;
    this.append(tokens);
  }

  /** @param {Shown[]} tokens */
  append(tokens) {
    const fragment = document.createDocumentFragment();
    for (const token of tokens) {
      const index = this.nodes.length;
      const node = document.createElement('span');
      node.setAttribute('role', 'option');
      node.setAttribute('aria-selected', 'false');
      node.tabIndex = index === 0 ? 0 : -1;
      this.tokens.push(token);
      this.nodes.push(node);
      // A line break stays a break, with a mark where it is: the mark is drawn by the style sheet.
      node.textContent = token.text;
      this.#dress(index);
      fragment.append(node);
    }
    this.element.append(fragment);
  }

  /** Forget the tokens from `length` on. @param {number} length */
  truncate(length) {
    for (const node of this.nodes.splice(length)) node.remove();
    this.tokens.length = Math.min(length, this.tokens.length);
    for (const index of this.marked) if (index >= length) this.marked.delete(index);
    if (this.current >= length) this.current = -1;
    if (this.current < 0 && this.nodes[0]) this.nodes[0].tabIndex = 0;
  }

  /** Show other values for the same tokens. @param {string} measure @param {(number | null)[]} values */
  revalue(measure, values) {
    this.measure = measure;
    this.tokens.forEach((token, index) => {
      token.value = values[index];
      this.#dress(index);
    });
  }

  /** Mark tokens as ones that would change. @param {number[]} positions */
  mark(positions) {
    const next = new Set(positions);
    for (const index of this.marked) if (!next.has(index)) this.nodes[index]?.classList.remove('changes');
    for (const index of next) if (!this.marked.has(index)) this.nodes[index]?.classList.add('changes');
    this.marked = next;
  }

  /** Give a class to the tokens before `length` and take it from the others. @param {string} name @param {number} length */
  prefix(name, length) {
    this.nodes.forEach((node, index) => node.classList.toggle(name, index < length));
  }

  /** Emphasise one token from elsewhere (the trace). @param {number} index */
  point(index) {
    this.element.querySelector('.pointed')?.classList.remove('pointed');
    this.nodes[index]?.classList.add('pointed');
  }

  /** @param {number} index @param {boolean} [focus] */
  select(index, focus = false) {
    if (!this.nodes[index]) return;
    this.#move(index);
    if (focus) this.nodes[index].focus();
    this.nodes[index].scrollIntoView({ block: 'nearest' });
  }

  /** @param {number} index */
  #dress(index) {
    const node = this.nodes[index];
    const { text, lead = null, value } = this.tokens[index];
    const before = index > 0 ? (this.tokens[index - 1].lead ?? null) : 'a';
    const level = Math.round(LEVELS * shade(this.measure, value));
    const hue = lead ?? (this.measure === 'delta_logp' && (value ?? 1) < 0 ? 'minus' : 'plus');
    let name = `tok ${hue} l${level}`;
    if (lead !== null && lead !== before) name += ` to-${lead}`;
    if (text.includes('\n')) name += ' nl';
    if (text === '') name += ' none';
    if (this.marked.has(index)) name += ' changes';
    for (const kept of ['kept', 'common']) if (node.classList.contains(kept)) name += ` ${kept}`;
    if (index === this.current) name += ' current';
    node.className = name;
    const who = lead === null ? '' : `, ${lead.toUpperCase()}`;
    node.setAttribute('aria-label', `${visible(text)}${who}, ${shortName(this.measure)} ${number(value)}`);
  }

  /** @param {number} index */
  #move(index) {
    const last = this.nodes[this.current] ?? this.nodes[0];
    last.tabIndex = -1;
    last.setAttribute('aria-selected', 'false');
    last.classList.remove('current');
    this.current = index;
    const node = this.nodes[index];
    node.tabIndex = 0;
    node.setAttribute('aria-selected', 'true');
    node.classList.add('current');
  }

  /** @param {number} index @param {boolean} pinned */
  #pick(index, pinned) {
    if (index !== this.current) this.#move(index);
    this.onPick(index, pinned);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const from = this.#indexOf(event.target);
    if (from < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = {
      ArrowRight: from + 1,
      ArrowLeft: from - 1,
      ArrowDown: this.#line(from, 1),
      ArrowUp: this.#line(from, -1),
      Home: 0,
      End: this.nodes.length - 1,
      n: this.#nextSwitch(from, 1),
      p: this.#nextSwitch(from, -1),
    }[event.key];
    if (event.key === 'Enter' || event.key === ' ') this.#pick(from, true);
    else if (to === undefined) return;
    else if (this.nodes[to] && !this.nodes[to].classList.contains('common')) this.nodes[to].focus();
    event.preventDefault();
  }

  /** The nearest token on another line. @param {number} from @param {1 | -1} step */
  #line(from, step) {
    const start = this.nodes[from].getBoundingClientRect();
    let best = from;
    let distance = Infinity;
    let line = NaN;
    for (let i = from + step; this.nodes[i]; i += step) {
      const box = this.nodes[i].getBoundingClientRect();
      if (step * (box.top - start.top) < start.height / 2) continue;
      if (Number.isNaN(line)) line = box.top;
      else if (Math.abs(box.top - line) > start.height / 2) break;
      const off = Math.abs(box.left - start.left);
      if (off < distance) [best, distance] = [i, off];
    }
    return best;
  }

  /** The next token at which the lead changes. @param {number} from @param {1 | -1} step */
  #nextSwitch(from, step) {
    for (let i = from + step; this.tokens[i]; i += step) {
      if (this.tokens[i].lead && this.tokens[i].lead !== (i > 0 ? this.tokens[i - 1].lead : 'a')) return i;
    }
    return from;
  }

  /** @param {Event} event @param {boolean} pinned */
  #onPointer(event, pinned) {
    const index = this.#indexOf(event.target);
    if (index < 0) return;
    if (pinned) {
      this.#pick(index, true);
      this.nodes[index].focus({ preventScroll: true });
    } else this.onPick(index, false);
  }

  /** @param {EventTarget | null} target */
  #indexOf(target) {
    return this.nodes.indexOf(/** @type {HTMLElement} */ (target));
  }
}
