/**
 * The switching rule on values already known: who would lead at another threshold. Mirrors `rl_onoff.policy`.
 *
 * A policy is the object the API takes. Only rules of one watched value have a threshold that can be moved on a trace.
 */

/** How each threshold rule sees its watched value: `sign * value > sign * threshold` asks for B. */
const SIGNS = {
  divergence: () => 1,
  entropy: () => 1,
  rank: () => 1,
  top_prob: () => -1,
  delta_logp: (/** @type {any} */ policy) => (policy.of === 'a' ? -1 : 1),
};

/** Whether the policy has a threshold on the value shown. @param {any} policy */
export function hasThreshold(policy) {
  return policy.kind in SIGNS;
}

/** The threshold as a value on the trace: `delta_logp` of A's token watches the value with the other sign. @param {any} policy */
export function traceThreshold(policy) {
  return policy.kind === 'delta_logp' && policy.of === 'a' ? -policy.on : policy.on;
}

/** The policy with its `on` moved to a place on the trace; `off`, if given, keeps on its side. @param {any} policy @param {number} value */
export function withThreshold(policy, value) {
  const on = policy.kind === 'delta_logp' && policy.of === 'a' ? -value : value;
  if (policy.off === undefined || policy.off === null) return { ...policy, on };
  const off = policy.kind === 'top_prob' ? Math.max(policy.off, on) : Math.min(policy.off, on);
  return { ...policy, on, off };
}

/** What is watched, as the measure is called in the API. @param {any} policy */
export function watched(policy) {
  switch (policy.kind) {
    case 'divergence':
      return policy.measure ?? 'js';
    case 'delta_logp':
      return `delta_logp_${policy.of ?? 'b'}`;
    case 'entropy':
      return 'entropy_a';
    case 'top_prob':
      return 'top_prob_a';
    case 'rank':
      return 'rank_of_b_in_a';
    case 'target_floor':
    case 'typical':
      return 'prob_of_a_in_b';
    default:
      return 'js';
  }
}

/**
 * Who leads each token, one letter a token. `null` is an infinite value, which asks for B in every rule.
 *
 * @param {any} policy @param {(number | null)[]} values @returns {string}
 */
export function leads(policy, values) {
  const kind = /** @type {keyof typeof SIGNS} */ (policy.kind);
  const sign = SIGNS[kind](policy);
  const dwell = policy.min_dwell ?? 1;
  const cap = policy.max_b_fraction ?? null;
  const on = sign * traceThreshold(policy);
  const off = policy.off == null ? on : sign * (kind === 'delta_logp' && policy.of === 'a' ? -policy.off : policy.off);
  let lead = policy.start ?? 'a';
  let run = lead === 'b' ? dwell : 0;
  let byB = 0;
  let letters = '';
  values.forEach((value, index) => {
    let next = lead;
    if (!(lead === 'b' && run < dwell)) {
      const beyond = value === null || sign * value > (lead === 'a' ? on : off);
      next = beyond ? 'b' : 'a';
    }
    if (next === 'b' && cap !== null && (byB + 1) / (index + 1) > cap) next = 'a';
    run = next === lead ? run + 1 : 1;
    lead = next;
    byB += next === 'b' ? 1 : 0;
    letters += next;
  });
  return letters;
}

/** The positions where two strings of leads differ. @param {string} now @param {string} then @returns {number[]} */
export function changes(now, then) {
  const found = [];
  for (let i = 0; i < now.length; i += 1) if (now[i] !== then[i]) found.push(i);
  return found;
}
