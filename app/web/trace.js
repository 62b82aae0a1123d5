/**
 * The divergence trace: one stem a token, coloured by leader, and a threshold line that can be dragged or moved with
 * the keyboard. A canvas, so that thousands of tokens cost one pixel column each.
 */

import { cssColour, el } from './dom.js';
import { ceiling, number, shortName } from './format.js';

/** @typedef {import('./tokens.js').Shown} Shown */

const HEIGHT = 150;
const LEFT = 46;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;

export class Trace {
  /**
   * @param {object} options
   * @param {(value: number, final: boolean) => void} options.onThreshold
   * @param {(index: number, pinned: boolean) => void} options.onPick
   */
  constructor({ onThreshold, onPick }) {
    this.canvas = el('canvas', { class: 'plot', 'aria-hidden': 'true' });
    this.grip = el('div', { class: 'grip', role: 'slider', tabindex: '0', 'aria-orientation': 'vertical' });
    this.element = el('div', { class: 'trace' }, this.canvas, this.grip);
    /** @type {Shown[]} */
    this.tokens = [];
    this.measure = 'js';
    /** @type {number | null} */
    this.threshold = null;
    this.top = 1;
    /** @type {Set<number>} */
    this.marked = new Set();
    this.pointed = -1;
    this.onThreshold = onThreshold;
    this.onPick = onPick;
    this.dragging = false;
    this.pending = false;
    /** @type {Record<string, string>} */
    this.colours = {};
    this.grip.addEventListener('pointerdown', (/** @type {PointerEvent} */ event) => this.#onGrab(event));
    this.grip.addEventListener('pointermove', (/** @type {PointerEvent} */ event) => this.#onDrag(event));
    this.grip.addEventListener('pointerup', () => this.#onDrop());
    this.grip.addEventListener('pointercancel', () => this.#onDrop());
    this.grip.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => this.#onKey(event));
    this.canvas.addEventListener('pointermove', (/** @type {PointerEvent} */ event) => this.onPick(this.#at(event), false));
    this.canvas.addEventListener('click', (/** @type {PointerEvent} */ event) => this.onPick(this.#at(event), true));
    new ResizeObserver(() => this.draw()).observe(this.element);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.recolour());
    document.addEventListener('theme', () => this.recolour());
  }

  recolour() {
    this.colours = {};
    this.draw();
  }

  /** @param {string} measure @param {Shown[]} tokens kept by reference @param {number | null} threshold null: no line */
  show(measure, tokens, threshold) {
    this.measure = measure;
    this.tokens = tokens;
    this.marked = new Set();
    this.setThreshold(threshold);
  }

  /** @param {number | null} threshold */
  setThreshold(threshold) {
    this.threshold = threshold;
    this.grip.hidden = threshold === null;
    if (threshold !== null) {
      this.grip.textContent = number(threshold);
      this.grip.setAttribute('aria-label', `Threshold on ${shortName(this.measure)}`);
      this.grip.setAttribute('aria-valuemin', '0');
      this.grip.setAttribute('aria-valuemax', Math.max(this.top, threshold).toPrecision(3));
      this.grip.setAttribute('aria-valuenow', String(threshold));
      this.grip.setAttribute('aria-valuetext', number(threshold));
    }
    this.draw();
  }

  /** @param {number[]} positions */
  mark(positions) {
    this.marked = new Set(positions);
    this.draw();
  }

  /** @param {number} index */
  point(index) {
    this.pointed = index;
    this.draw();
  }

  /** Draws at the next frame, however often it is asked to. */
  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.#draw();
    });
  }

  #draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    const canvas = this.canvas;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(HEIGHT * ratio)) canvas.height = Math.round(HEIGHT * ratio);
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, HEIGHT);
    if (!this.colours.ink) {
      for (const name of ['a', 'b', 'ink', 'muted', 'line', 'mark', 'threshold']) this.colours[name] = cssColour(`--${name}`);
    }
    if (!this.dragging) this.top = this.#scale();
    this.#axes(context, width);
    this.#stems(context, width);
    this.#line(context, width);
  }

  #scale() {
    let most = 0;
    for (const { value } of this.tokens) if (value !== null && value > most) most = value;
    const wanted = Math.max(most * 1.1, (this.threshold ?? 0) * 1.5, 1e-3);
    const limit = ceiling(this.measure);
    return limit === null ? wanted : Math.min(Math.max(wanted, limit / 4), limit);
  }

  /** @param {CanvasRenderingContext2D} context @param {number} width */
  #axes(context, width) {
    const { muted, line } = this.colours;
    context.font = '11px ui-sans-serif, system-ui, sans-serif';
    context.textBaseline = 'middle';
    for (const part of [0, 0.5, 1]) {
      const y = this.#y(part * this.top);
      context.fillStyle = line;
      context.fillRect(LEFT, Math.round(y), width - LEFT - RIGHT, 1);
      context.fillStyle = muted;
      context.textAlign = 'right';
      context.fillText(number(Number((part * this.top).toPrecision(2))), LEFT - 6, y);
    }
    context.textBaseline = 'alphabetic';
    const count = this.tokens.length;
    const step = tick(count);
    context.textAlign = 'center';
    for (let i = 0; i < count; i += step) {
      context.fillText(String(i), this.#x(i, width), HEIGHT - 6);
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {number} width */
  #stems(context, width) {
    const count = this.tokens.length;
    const step = (width - LEFT - RIGHT) / Math.max(count, 1);
    const stem = Math.max(1, Math.min(step * 0.6, 7));
    const base = this.#y(0);
    for (const lead of ['a', 'b']) {
      context.fillStyle = this.colours[lead];
      this.tokens.forEach((token, index) => {
        if ((token.lead ?? 'a') !== lead) return;
        const y = token.value === null ? TOP - 4 : this.#y(Math.max(token.value, 0));
        const x = this.#x(index, width) - stem / 2;
        context.fillRect(x, Math.min(y, base - 1), stem, Math.max(base - y, 1));
      });
    }
    context.fillStyle = this.colours.mark;
    for (const index of this.marked) {
      context.beginPath();
      context.arc(this.#x(index, width), base + 5, 2.5, 0, 7);
      context.fill();
    }
    if (this.pointed >= 0 && this.pointed < count) {
      context.fillStyle = this.colours.ink;
      context.globalAlpha = 0.35;
      context.fillRect(this.#x(this.pointed, width), TOP - 6, 1, base - TOP + 10);
      context.globalAlpha = 1;
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {number} width */
  #line(context, width) {
    if (this.threshold === null) return;
    const y = this.#y(this.threshold);
    context.strokeStyle = this.colours.threshold;
    context.lineWidth = 1.5;
    context.setLineDash([5, 4]);
    context.beginPath();
    context.moveTo(LEFT, y);
    context.lineTo(width - RIGHT, y);
    context.stroke();
    context.setLineDash([]);
    this.grip.style.top = `${y}px`;
    this.grip.setAttribute('aria-valuemax', this.top.toPrecision(3));
  }

  /** @param {number} value */
  #y(value) {
    const part = Math.min(Math.max(value / this.top, 0), 1);
    return HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP);
  }

  /** @param {number} index @param {number} width */
  #x(index, width) {
    return LEFT + ((index + 0.5) * (width - LEFT - RIGHT)) / Math.max(this.tokens.length, 1);
  }

  /** The token under the pointer. @param {PointerEvent} event */
  #at(event) {
    const width = this.element.clientWidth;
    const part = (event.offsetX - LEFT) / (width - LEFT - RIGHT);
    const index = Math.floor(part * this.tokens.length);
    return index >= 0 && index < this.tokens.length ? index : -1;
  }

  /** @param {PointerEvent} event */
  #onGrab(event) {
    this.dragging = true;
    this.grip.setPointerCapture(event.pointerId);
    event.preventDefault();
    this.grip.focus();
  }

  /** @param {PointerEvent} event */
  #onDrag(event) {
    if (!this.dragging) return;
    const y = event.clientY - this.element.getBoundingClientRect().top;
    const part = (HEIGHT - BOTTOM - y) / (HEIGHT - BOTTOM - TOP);
    this.#moved(Math.min(Math.max(part, 0), 1) * this.top, false);
  }

  #onDrop() {
    if (!this.dragging) return;
    this.dragging = false;
    this.#moved(/** @type {number} */ (this.threshold), true);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const step = this.top / (event.shiftKey ? 10 : 100);
    const now = this.threshold ?? 0;
    const to = {
      ArrowUp: now + step,
      ArrowRight: now + step,
      ArrowDown: now - step,
      ArrowLeft: now - step,
      PageUp: now + 10 * step,
      PageDown: now - 10 * step,
      Home: 0,
      End: this.top,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#moved(Math.max(to, 0), true);
  }

  /** @param {number} value @param {boolean} final */
  #moved(value, final) {
    const rounded = Number(value.toPrecision(3));
    this.setThreshold(rounded);
    this.onThreshold(rounded, final);
  }
}

/** A round distance between labels. @param {number} count */
function tick(count) {
  for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]) if (count / step <= 12) return step;
  return 5000;
}
