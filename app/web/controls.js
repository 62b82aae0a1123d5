/** What can be chosen before a text is written: the policy and the sampling, as the API takes them. */

import { el } from './dom.js';
import { MEASURES } from './format.js';

/**
 * @typedef {object} Field
 * @property {string} name as in the API
 * @property {string} label
 * @property {'number' | 'text' | 'lead' | 'measure' | 'positions' | 'lookahead'} type
 * @property {string} [initial] empty: the API's default
 * @property {string} [hint] shown while it is empty
 * @property {string} [step]
 */

const BUDGET = [
  { name: 'min_dwell', label: 'B keeps at least', type: 'number', initial: '1', step: '1', hint: '1' },
  { name: 'max_b_fraction', label: 'B’s share at most', type: 'number', hint: 'any', step: 'any' },
  { name: 'start', label: 'starts with', type: 'lead', initial: 'a' },
];
const OFF = { name: 'off', label: 'back to A at', type: 'number', hint: 'the same', step: 'any' };

/** @param {string} label @param {string} initial @returns {any} */
function on(label, initial) {
  return { name: 'on', label, type: 'number', initial, step: 'any' };
}

/** @type {Record<string, { label: string, fields: any[] }>} */
const POLICIES = {
  divergence: {
    label: 'divergence',
    fields: [{ name: 'measure', label: 'measure', type: 'measure', initial: 'js' }, on('B leads above', '0.1'), OFF, ...BUDGET],
  },
  delta_logp: {
    label: 'Δ log p',
    fields: [{ name: 'of', label: 'of the token of', type: 'lead', initial: 'b' }, on('B leads above', '1'), OFF, ...BUDGET],
  },
  entropy: { label: 'entropy of A', fields: [on('B leads above', '0.45'), OFF, ...BUDGET] },
  top_prob: { label: 'top-1 probability of A (nudging)', fields: [on('B leads below', '0.4'), OFF, ...BUDGET] },
  rank: { label: 'rank of B’s best token in A', fields: [on('B leads above', '3'), OFF, ...BUDGET] },
  target_floor: { label: 'B’s probability of A’s token', fields: [on('B leads below', '0.01'), OFF, ...BUDGET] },
  typical: {
    label: 'typical acceptance',
    fields: [on('epsilon', '0.09'), { name: 'delta', label: 'delta', type: 'number', initial: '0.3', step: 'any' }, OFF, ...BUDGET],
  },
  random: {
    label: 'random control',
    fields: [{ name: 'rate', label: 'B’s rate', type: 'number', initial: '0.05', step: 'any' }, BUDGET[1]],
  },
  schedule: { label: 'given positions', fields: [{ name: 'positions', label: 'B’s tokens', type: 'positions', initial: '', hint: '0, 7, 12' }] },
  always_a: { label: 'A alone', fields: [] },
  always_b: { label: 'B alone', fields: [] },
};

const POLICY_MEASURES = ['js', 'kl_ab', 'kl_ba', 'tv', 'hellinger', 'entropy_a', 'entropy_b'];

/** @type {any[]} */
const SAMPLING = [
  { name: 'temperature', label: 'temperature', type: 'number', initial: '1', step: 'any' },
  { name: 'max_tokens', label: 'tokens at most', type: 'number', initial: '120', step: '1' },
  { name: 'seed', label: 'seed', type: 'number', initial: '1', step: '1', hint: 'drawn' },
  { name: 'top_p', label: 'top p', type: 'number', initial: '1', step: 'any' },
  { name: 'top_k', label: 'top k', type: 'number', initial: '0', step: '1', hint: '0: off' },
  { name: 'min_p', label: 'min p', type: 'number', initial: '0', step: 'any' },
  { name: 'stop', label: 'stop at', type: 'text', hint: 'no text' },
  { name: 'lookahead', label: 'lookahead', type: 'lookahead', hint: 'auto' },
];

/** Fields as form controls; `read` gives what was entered by name, as the API's types. */
class Fields {
  /** @param {HTMLElement} parent @param {string} prefix */
  constructor(parent, prefix) {
    this.parent = parent;
    this.prefix = prefix;
    /** @type {{ field: Field, input: HTMLInputElement & HTMLSelectElement }[]} */
    this.entries = [];
  }

  /** @param {any[]} fields @param {Record<string, string>} [values] that were entered before */
  show(fields, values = {}) {
    this.entries = fields.map((field) => {
      const input = control(field);
      input.id = `${this.prefix}-${field.name}`;
      input.value = values[field.name] ?? field.initial ?? '';
      return { field, input };
    });
    this.parent.replaceChildren(
      ...this.entries.map(({ field, input }) => el('div', { class: field.type === 'measure' ? 'field wide' : 'field' }, el('label', { for: input.id, text: field.label }), input)),
    );
  }

  /** @returns {Record<string, any>} */
  read() {
    /** @type {Record<string, any>} */
    const found = {};
    for (const { field, input } of this.entries) {
      const text = field.type === 'text' ? input.value : input.value.trim();
      if (text !== '' || field.type === 'positions') found[field.name] = parsed(field, text);
    }
    return found;
  }

  /** @param {string} name @param {string} value */
  set(name, value) {
    const entry = this.entries.find(({ field }) => field.name === name);
    if (entry) entry.input.value = value;
  }
}

/** @param {Field} field */
function control(field) {
  if (field.type === 'lead') return el('select', {}, ...['a', 'b'].map((side) => el('option', { value: side, text: side.toUpperCase() })));
  if (field.type === 'measure') {
    return el('select', {}, ...POLICY_MEASURES.map((name) => el('option', { value: name, text: MEASURES[name] })));
  }
  const type = field.type === 'number' ? 'number' : 'text';
  return el('input', { type, step: field.step, placeholder: field.hint, autocomplete: 'off' });
}

/** @param {Field} field @param {string} text */
function parsed(field, text) {
  if (field.type === 'number') return Number(text);
  if (field.type === 'lookahead') return text === 'auto' ? text : Number(text);
  if (field.type === 'positions') return text.split(/[\s,]+/).filter(Boolean).map(Number);
  return text;
}

export class Controls {
  /** @param {HTMLElement} policy @param {HTMLElement} sampling @param {() => void} onChange */
  constructor(policy, sampling, onChange) {
    this.kind = el(
      'select',
      { id: 'policy-kind' },
      ...Object.entries(POLICIES).map(([kind, { label }]) => el('option', { value: kind, text: label })),
    );
    const rest = el('div', { class: 'fields' });
    policy.replaceChildren(
      el('div', { class: 'field wide' }, el('label', { for: 'policy-kind', text: 'B leads by' }), this.kind),
      rest,
    );
    this.policyFields = new Fields(rest, 'policy');
    this.samplingFields = new Fields(sampling, 'sampling');
    this.policyFields.show(POLICIES.divergence.fields);
    this.samplingFields.show(SAMPLING);
    this.kind.addEventListener('change', () => {
      this.policyFields.show(POLICIES[this.kind.value].fields);
      onChange();
    });
    policy.addEventListener('input', onChange);
    sampling.addEventListener('input', onChange);
  }

  /** @returns {any} */
  get policy() {
    return { kind: this.kind.value, ...this.policyFields.read() };
  }

  /** Sampling and lookahead; a seed is drawn here if none was given, so that a broken stream can be taken up again. */
  get request() {
    const { lookahead, ...sampling } = this.samplingFields.read();
    sampling.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
    return { sampling, ...(lookahead === undefined ? {} : { lookahead }) };
  }

  /** @param {number} value */
  setThreshold(value) {
    this.policyFields.set('on', String(value));
  }
}
