/** One switched generation as it comes: tokens gathered for each frame, stopping, counting. */

import { streamSwitch } from './api.js';

/** @typedef {import('./api.js').Token} Token */

/**
 * @typedef {object} Watcher
 * @property {(tokens: Token[]) => void} onTokens the tokens of one frame
 * @property {(length: number) => void} onRewind what is shown from `length` on will be written again
 * @property {(reason: string) => void} onWait
 */

export class Run {
  /** @param {any} body @param {Watcher} watcher */
  constructor(body, watcher) {
    this.body = body;
    this.watcher = watcher;
    /** @type {Token[]} */
    this.tokens = [];
    this.byB = 0;
    this.switches = 0;
    this.started = performance.now();
    this.first = NaN;
    this.last = NaN;
    this.controller = new AbortController();
    /** @type {Token[]} */
    this.waiting = [];
    this.frame = 0;
  }

  /** Until the text is written; its result. @returns {Promise<any>} */
  async finished() {
    try {
      return await streamSwitch(
        this.body,
        {
          onToken: (token) => this.#take(token),
          onRewind: (index) => this.#rewind(index),
          onWait: this.watcher.onWait,
        },
        this.controller.signal,
      );
    } finally {
      this.#flush();
    }
  }

  /** Closing the connection is what stops the worker. */
  stop() {
    this.controller.abort();
  }

  get stopped() {
    return this.controller.signal.aborted;
  }

  /** Tokens a second between the first and the last; NaN before there are two. */
  get rate() {
    return (1000 * (this.tokens.length - 1)) / (this.last - this.first);
  }

  /** @param {Token} token */
  #take(token) {
    const before = this.tokens.at(-1)?.lead ?? this.body.policy?.start ?? 'a';
    this.last = performance.now();
    if (!this.tokens.length) this.first = this.last;
    this.tokens.push(token);
    this.byB += token.lead === 'b' ? 1 : 0;
    this.switches += token.lead === before ? 0 : 1;
    this.waiting.push(token);
    // A hidden tab has no frames: a timer stands in.
    this.frame ||= document.hidden ? window.setTimeout(() => this.#flush(), 200) : requestAnimationFrame(() => this.#flush());
  }

  /** @param {number} index */
  #rewind(index) {
    this.#flush();
    this.tokens.length = index;
    this.byB = this.tokens.filter((token) => token.lead === 'b').length;
    this.switches = this.tokens.filter((token, i) => i > 0 && token.lead !== this.tokens[i - 1].lead).length;
    this.watcher.onRewind(index);
  }

  #flush() {
    this.frame = 0;
    if (this.waiting.length) this.watcher.onTokens(this.waiting.splice(0));
  }
}
