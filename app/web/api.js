/** The service's public API: JSON, and streams that mend themselves. Holds the API key, in memory only. */

import { readEvents } from './sse.js';

/** How long a service that is starting, busy or gone is asked again. */
const PATIENCE_MS = 60_000;

/** An RFC 9457 problem. */
export class Problem extends Error {
  /** @param {Record<string, any>} body @param {number} status */
  constructor(body, status) {
    super(body.detail || body.title || `the service answered ${status}`);
    this.status = body.status ?? status;
    this.title = body.title ?? 'Problem';
    this.retryable = Boolean(body.retryable);
    this.requestId = body.request_id ?? null;
    /** @type {{ field?: string, message?: string }[]} */
    this.errors = Array.isArray(body.errors) ? body.errors : [];
    this.field = body.field ?? null;
  }
}

/** No answer came, or it broke off. */
export class ConnectionLost extends Error {
  constructor() {
    super('The connection to the service was lost.');
  }
}

/** @type {string | null} */
let key = null;
/** @type {Promise<string | null> | null} */
let asking = null;
/** @type {(refused: boolean) => Promise<string | null>} */
let askForKey = async () => null;

/** Who is asked for the key once the service wants one. @param {typeof askForKey} ask */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/**
 * @typedef {object} Options
 * @property {AbortSignal} [signal]
 * @property {(reason: string) => void} [onWait] told why the answer takes longer
 */

/** @param {string} path @param {Options} [options] @returns {Promise<any>} */
export async function get(path, options = {}) {
  return (await answered(path, { headers: {} }, options)).json();
}

/** @param {string} path @param {unknown} body @param {Options} [options] @returns {Promise<any>} */
export async function post(path, body, options = {}) {
  return (await answered(path, posted(body), options)).json();
}

/** @param {string} path @returns {Promise<string>} */
export async function text(path) {
  return (await answered(path, { headers: {} }, {})).text();
}

/** @param {unknown} body */
function posted(body) {
  return { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
}

/**
 * The response, once it is one of success: asks for a key on 401, waits where the service says when to retry.
 *
 * @param {string} path @param {any} init @param {Options} options @returns {Promise<Response>}
 */
async function answered(path, init, { signal, onWait }) {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const used = key;
    const headers = { ...init.headers, ...(used === null ? {} : { Authorization: `Bearer ${used}` }) };
    let response;
    try {
      response = await fetch(path, { ...init, headers, signal, cache: 'no-store', credentials: 'omit' });
    } catch (error) {
      throw signal?.aborted ? error : new ConnectionLost();
    }
    if (response.ok) return response;
    const problem = await readProblem(response);
    if (response.status === 401) {
      if (await newKey(used)) continue;
      throw problem;
    }
    const seconds = Number(response.headers.get('Retry-After'));
    if (!problem.retryable || !(seconds > 0) || performance.now() + seconds * 1000 > deadline) throw problem;
    onWait?.(`${problem.message} — trying again`);
    await pause(seconds * 1000, signal);
  }
}

/** @param {Response} response */
async function readProblem(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // not a problem document: a proxy between us and the service
  }
  return new Problem(body, response.status);
}

/** Whether there is another key than the refused one; asks once for all requests that wait. @param {string | null} used */
async function newKey(used) {
  if (key !== used) return true;
  asking ??= askForKey(used !== null).finally(() => {
    asking = null;
  });
  const given = await asking;
  if (given === null) return false;
  key = given;
  return true;
}

/** @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>} */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * @typedef {{ index: number, id: number, text: string, lead: 'a' | 'b', divergence: number | null }} Token
 *
 * @typedef {object} Listener
 * @property {(token: Token) => void} onToken
 * @property {(index: number) => void} onRewind what was shown from `index` on is replaced by what follows
 * @property {(reason: string) => void} onWait
 */

/**
 * Streams `/switch-generate`; the result. A connection that breaks is made again with the same request and the id of
 * the last event: the text goes on there, and since a seed fixes it, also in a service that was started anew. `body`
 * must have a seed.
 *
 * @param {any} body @param {Listener} listener @param {AbortSignal} signal @returns {Promise<any>}
 */
export async function streamSwitch(body, listener, signal) {
  /** @type {number[]} */
  const seen = [];
  /** @type {Record<string, string>} */
  const place = {};
  let deadline = performance.now() + PATIENCE_MS;
  for (let attempt = 0; ; attempt += 1) {
    const before = seen.length;
    try {
      return await streamOnce(body, seen, place, listener, signal);
    } catch (error) {
      const lost = error instanceof ConnectionLost || (error instanceof Problem && error.retryable);
      if (seen.length > before) {
        deadline = performance.now() + PATIENCE_MS;
        attempt = 0;
      }
      if (signal.aborted || !lost || performance.now() > deadline) throw error;
      listener.onWait(`${/** @type {Error} */ (error).message} Connecting again …`);
      await pause(Math.min(250 * 2 ** attempt, 4000), signal);
    }
  }
}

/**
 * `place` holds the headers that tell the service where to go on.
 *
 * @param {any} body @param {number[]} seen @param {Record<string, string>} place
 * @param {Listener} listener @param {AbortSignal} signal
 */
async function streamOnce(body, seen, place, listener, signal) {
  const request = posted({ ...body, stream: true });
  const headers = { ...request.headers, ...place };
  const response = await answered('/switch-generate', { ...request, headers }, { signal, onWait: listener.onWait });
  const requestId = response.headers.get('X-Request-Id');
  if (requestId !== null) place['X-Request-Id'] = requestId;
  /** @type {any} */
  let result = null;
  /** @type {Problem | null} */
  let failure = null;
  try {
    await readEvents(/** @type {ReadableStream<Uint8Array>} */ (response.body), ({ name, id, data }) => {
      if (id !== null) place['Last-Event-ID'] = id;
      if (name === 'token') {
        if (seen[data.index] === data.id) return;
        if (data.index < seen.length) {
          seen.length = data.index;
          listener.onRewind(data.index);
        }
        seen.push(data.id);
        listener.onToken(data);
      } else if (name === 'done') {
        result = data;
        tellOtherText(result, seen, listener);
      } else if (name === 'error') failure = new Problem(data, data.status);
    });
  } catch (error) {
    if (signal.aborted || error instanceof SyntaxError) throw error;
    throw new ConnectionLost();
  }
  if (failure !== null) throw failure;
  if (result === null) throw new ConnectionLost();
  return result;
}

/**
 * A service that was started anew with other models ends another text than the one that was begun: shown from where
 * they part.
 *
 * @param {any} result @param {number[]} seen @param {Listener} listener
 */
function tellOtherText(result, seen, listener) {
  const { token_ids: ids, tokens, leads, divergences } = result;
  const first = ids.findIndex((/** @type {number} */ id, /** @type {number} */ index) => seen[index] !== id);
  const from = first < 0 ? ids.length : first;
  if (from === ids.length && seen.length === ids.length) return;
  seen.length = from;
  listener.onRewind(from);
  for (let index = from; index < ids.length; index += 1) {
    seen.push(ids[index]);
    listener.onToken({ index, id: ids[index], text: tokens[index], lead: leads[index], divergence: divergences[index] });
  }
}
