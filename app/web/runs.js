/** Runs: files of ours, walked item by item. They are read in the browser and stay there. */

import { post } from './api.js';
import { byId, el } from './dom.js';
import { measureName, number } from './format.js';
import { readFile, shapeOf } from './records.js';
import { TokensView } from './tokens.js';

/** @typedef {import('./records.js').Shape} Shape */

const PAGE = 200;

export class Runs {
  /** @param {import('./main.js').Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.input = el('input', { type: 'file', id: 'file', multiple: true, accept: '.json,.jsonl,.html', class: 'sr', onchange: () => void this.#open([...this.input.files]) });
    this.drop = el(
      'div',
      { class: 'card drop' },
      el('p', {}, 'Drop a run’s ', el('code', { text: 'results.jsonl' }), ', a report, or what this page saved. ', el('label', { for: 'file', class: 'button', text: 'Choose files' }), this.input),
      el('p', { class: 'muted', text: 'Files are read here and sent nowhere; token texts and top-10s are asked of the service.' }),
    );
    this.find = el('input', { type: 'search', id: 'find', placeholder: 'text in a record', oninput: () => this.#filter() });
    this.count = el('p', { class: 'muted', role: 'status' });
    this.list = el('nav', { class: 'list', 'aria-label': 'Items' });
    this.previous = el('button', { type: 'button', text: '← Previous', onclick: () => void this.#go(this.at - 1) });
    this.next = el('button', { type: 'button', text: 'Next →', onclick: () => void this.#go(this.at + 1) });
    this.view = new TokensView({ label: 'The item, token by token', onPick: (index, pinned) => this.#pick(index, pinned) });
    this.item = el('div', { class: 'card' });
    this.walk = el(
      'div',
      { class: 'walk', hidden: true },
      el('div', { class: 'card' }, el('label', { for: 'find', class: 'muted', text: 'Find' }), this.find, this.count, el('div', { class: 'row' }, this.previous, this.next), this.list),
      this.item,
    );
    const section = byId('runs');
    section.replaceChildren(this.drop, this.walk);
    section.addEventListener('dragover', (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      this.drop.classList.add('over');
    });
    section.addEventListener('dragleave', () => this.drop.classList.remove('over'));
    section.addEventListener('drop', (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      this.drop.classList.remove('over');
      void this.#open([...(event.dataTransfer?.files ?? [])]);
    });
    /** @type {(() => any)[]} */
    this.records = [];
    /** @type {number[]} the records that are listed */
    this.listed = [];
    this.at = 0;
    /** @type {Shape | null} */
    this.shape = null;
    this.shown = '';
  }

  /** @param {File[]} files */
  async #open(files) {
    if (!files.length) return;
    await this.desk.busy(async () => {
      this.records = (await Promise.all(files.map(readFile))).flat();
      this.drop.querySelector('p').firstChild.textContent = `${files.map(({ name }) => name).join(', ')}: ${this.records.length} records. Drop another `;
      this.find.value = '';
      this.walk.hidden = false;
      await this.#filter();
    });
    this.input.value = '';
  }

  async #filter() {
    const wanted = this.find.value.toLowerCase();
    this.listed = this.records.flatMap((read, index) => (wanted === '' || JSON.stringify(read()).toLowerCase().includes(wanted) ? [index] : []));
    await this.#go(0);
  }

  /** @param {number} at a place in the list */
  async #go(at) {
    this.at = Math.min(Math.max(at, 0), Math.max(this.listed.length - 1, 0));
    const begin = Math.floor(this.at / PAGE) * PAGE;
    this.count.textContent = this.listed.length ? `${this.at + 1} of ${this.listed.length}` : 'none';
    this.previous.disabled = this.at === 0;
    this.next.disabled = this.at >= this.listed.length - 1;
    this.list.replaceChildren(
      ...this.listed.slice(begin, begin + PAGE).map((index, i) =>
        el('button', {
          type: 'button',
          text: shapeOf(this.records[index](), index).title,
          'aria-current': begin + i === this.at ? 'true' : null,
          onclick: () => void this.#go(begin + i),
        }),
      ),
    );
    const current = this.list.querySelector('[aria-current]');
    if (current) this.list.scrollTop = current.offsetTop - this.list.offsetTop - this.list.clientHeight / 2;
    this.desk.details.clear();
    if (this.listed.length) await this.#show(shapeOf(this.records[this.listed[this.at]](), this.listed[this.at]));
    else this.item.replaceChildren();
  }

  /** @param {Shape} shape */
  async #show(shape) {
    this.shape = shape;
    const measures = Object.keys(shape.values);
    const select = el('select', { id: 'run-measure', onchange: () => this.#measure(select.value) }, ...measures.map((name) => el('option', { value: name, text: measureName(name) })));
    const note = el('p', { class: 'muted', role: 'status' });
    this.item.replaceChildren(
      el('div', { class: 'row spread' }, el('h2', { text: `${shape.kind} ${shape.title}`.slice(0, 120) }), measures.length > 1 ? el('span', { class: 'row' }, el('label', { for: 'run-measure', class: 'muted', text: 'Measure' }), select) : ''),
      ...(shape.prompt ? [el('h3', { class: 'muted', text: 'Prompt' }), el('p', { class: 'plain', text: shape.prompt })] : []),
      ...this.#body(shape),
      note,
      el('dl', { class: 'facts' }, ...Object.entries(shape.facts).flatMap(([name, value]) => [el('dt', { text: name }), el('dd', { text: typeof value === 'number' ? number(value) : String(value) })])),
    );
    if (shape.ids) await this.#tokens(shape, measures[0] ?? 'js', note);
  }

  /** @param {Shape} shape */
  #body(shape) {
    if (shape.ids) return [this.view.element];
    const scorable = shape.prompt && shape.text;
    const text = shape.text ?? JSON.stringify(shape.source, null, 1);
    const score = el('button', {
      type: 'button',
      text: 'Score this',
      onclick: () => {
        this.desk.score(/** @type {string} */ (shape.prompt), /** @type {string} */ (shape.text));
      },
    });
    return [el('p', { class: 'plain', text }), ...(scorable ? [score] : [])];
  }

  /** @param {Shape} shape @param {string} measure @param {HTMLElement} note */
  async #tokens(shape, measure, note) {
    const ids = /** @type {number[]} */ (shape.ids);
    const draw = () =>
      this.view.reset(
        measure,
        ids.map((id, i) => ({
          id,
          text: shape.texts?.[i] ?? `‹${id}›`,
          lead: /** @type {'a' | 'b' | null} */ (shape.leads?.[i] ?? null),
          value: shape.values[measure] ? shape.values[measure][i] : 0,
        })),
      );
    draw();
    if ((shape.texts && shape.values[measure]) || shape.asked === null) return;
    // A run keeps ids; their texts, and a measure where the file has none, are the service's to tell.
    try {
      const answer = await post('/divergence', { ...this.desk.names(), items: [{ ...shape.asked, solution_ids: ids }], measures: ['js'], summary: false });
      if (this.shape !== shape) return;
      const [item] = answer.items;
      shape.texts ??= item.tokens;
      if (!shape.values[measure]) {
        measure = 'js';
        shape.values.js = item.values.js;
        note.textContent = 'Shaded by JS between the pair that is served now.';
      }
      draw();
    } catch (error) {
      note.textContent = `Token texts are not known: ${/** @type {Error} */ (error).message}`;
    }
  }

  /** @param {string} measure */
  #measure(measure) {
    if (this.shape) this.view.revalue(measure, this.shape.values[measure]);
  }

  /** @param {number} index @param {boolean} pinned */
  #pick(index, pinned) {
    const shape = this.shape;
    this.view.point(index);
    if (!shape?.ids || shape.asked === null) return;
    this.desk.details.show(
      { ...this.desk.names(), prompt: shape.asked, ids: shape.ids, texts: shape.texts ?? [], leads: shape.leads ?? undefined },
      index,
      pinned,
    );
  }
}
