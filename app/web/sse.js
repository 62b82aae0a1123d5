/**
 * Server-sent events from a fetch body.
 *
 * @typedef {{ name: string, id: string | null, data: any }} SentEvent
 */

/**
 * Calls `onEvent` for every event; returns at the end of the body. Comments and unknown fields are passed over.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @param {(event: SentEvent) => void} onEvent
 */
export async function readEvents(body, onEvent) {
  const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = '';
  let fields = empty();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = /** @type {string} */ (lines.pop());
    for (const raw of lines) {
      const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
      if (line === '') {
        if (fields.data.length) onEvent({ name: fields.event, id: fields.id, data: JSON.parse(fields.data.join('\n')) });
        fields = empty();
        continue;
      }
      const colon = line.indexOf(':');
      const name = colon < 0 ? line : line.slice(0, colon);
      const text = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
      if (name === 'event') fields.event = text;
      else if (name === 'id') fields.id = text;
      else if (name === 'data') fields.data.push(text);
    }
  }
}

function empty() {
  return { event: 'message', id: /** @type {string | null} */ (null), data: /** @type {string[]} */ ([]) };
}
