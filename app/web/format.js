/** Numbers and tokens as people read them. */

export const LN2 = Math.log(2);

/** Measures in the order the page offers them, and what they are. */
export const MEASURES = /** @type {Record<string, string>} */ ({
  js: 'Jensen–Shannon',
  kl_ab: 'KL(A‖B)',
  kl_ba: 'KL(B‖A)',
  tv: 'total variation',
  hellinger: 'Hellinger',
  entropy_a: 'entropy of A',
  entropy_b: 'entropy of B',
  delta_logp: 'Δ log p (B − A)',
  top1_agree: 'same best token',
  top_prob_a: 'best token’s p, A',
  top_prob_b: 'best token’s p, B',
  rank_of_a_in_b: 'rank of A’s best in B',
  rank_of_b_in_a: 'rank of B’s best in A',
});

const NAMES = /** @type {Record<string, string>} */ ({
  ...MEASURES,
  delta_logp_a: 'Δ log p of A’s token',
  delta_logp_b: 'Δ log p of B’s token',
  prob_of_a_in_b: 'B’s p of A’s token',
});
const SHORT = /** @type {Record<string, string>} */ ({ js: 'JS', kl_ab: 'KL(A‖B)', kl_ba: 'KL(B‖A)', tv: 'TV' });

/** @param {string} measure */
export function measureName(measure) {
  return NAMES[measure] ?? measure;
}

/** @param {string} measure */
export function shortName(measure) {
  return SHORT[measure] ?? measureName(measure);
}

/** Three significant digits, `∞` for null. @param {number | null | undefined} value */
export function number(value) {
  if (value === null || value === undefined) return '∞';
  if (value === -Infinity) return '−∞';
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && size < 0.0005) return value.toExponential(1);
  return value.toFixed(size < 1 ? 3 : size < 100 ? 2 : 0);
}

/** Values of an answer or a record with those that are -inf as such. @param {(number | null)[]} values @param {number[]} [below] */
export function signed(values, below = []) {
  return values.map((value, index) => (value === null && below.includes(index) ? -Infinity : value));
}

/** @param {number} part */
export function percent(part) {
  return `${(100 * part).toFixed(part > 0 && part < 0.1 ? 1 : 0)}%`;
}

/** A token's text with what cannot be seen made visible. @param {string} text */
export function visible(text) {
  if (text === '') return '∅';
  return text.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/^ | $/g, '␣');
}

/**
 * How strongly a value is shaded, 0 to 1. Square roots, so that small divergences can be seen at all.
 *
 * @param {string} measure @param {number | null} value
 */
export function shade(measure, value) {
  if (value === null) return 1;
  const base = measure.split(':')[0];
  if (base === 'js') return Math.sqrt(Math.min(value / LN2, 1));
  if (base === 'top1_agree' || base === 'top_prob_a' || base === 'top_prob_b' || base === 'prob_of_a_in_b') return 1 - value;
  if (base === 'topk_overlap') return 1 - value;
  if (base === 'tv' || base === 'hellinger') return value;
  if (base.startsWith('rank_')) return Math.min(Math.log2(value) / 10, 1);
  if (base.startsWith('entropy')) return 1 - Math.exp(-value / 1.5);
  return Math.sqrt(1 - Math.exp(-Math.abs(value)));
}

/** The largest value a measure can take, if there is one. @param {string} measure @returns {number | null} */
export function ceiling(measure) {
  if (measure === 'js') return LN2;
  if (/^(tv|hellinger|top1_agree|top_prob_[ab]|prob_of_a_in_b|topk_overlap:\d+)$/.test(measure)) return 1;
  return null;
}
