/** The heatmap as a figure of its own, for papers and slides: one SVG without style sheets, and the PNG made of it. */

import { cssColour, download, svg } from './dom.js';
import { measureName, number, shade } from './format.js';

/** @typedef {import('./tokens.js').Shown} Shown */

const FONT = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
const SANS = 'system-ui, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif';
const SIZE = 15;
const LINE = 30;
const MARGIN = 20;
const WIDTH = 900;
const PIXELS = 2;

/**
 * @param {Shown[]} tokens @param {string} measure @param {string} title
 * @returns {SVGSVGElement}
 */
export function heatmap(tokens, measure, title) {
  const colours = Object.fromEntries(
    ['ink', 'muted', 'card', 'a', 'b', 'a-fill', 'b-fill', 'plus-fill'].map((name) => [name, cssColour(`--${name}`)]),
  );
  const measured = /** @type {CanvasRenderingContext2D} */ (document.createElement('canvas').getContext('2d'));
  const root = svg('svg', { xmlns: 'http://www.w3.org/2000/svg', role: 'img', 'aria-label': title });
  const cells = svg('g', { 'font-family': FONT, 'font-size': SIZE, 'xml:space': 'preserve' });
  let x = MARGIN;
  let y = MARGIN + 34;
  for (const { text, lead = null, value } of tokens) {
    const bold = lead === 'b';
    measured.font = `${bold ? '700 ' : ''}${SIZE}px ${FONT}`;
    text.split('\n').forEach((part, index) => {
      if (index > 0) [x, y] = [MARGIN, y + LINE];
      const width = measured.measureText(part).width;
      if (x + width > WIDTH - MARGIN && x > MARGIN) [x, y] = [MARGIN, y + LINE];
      if (part === '') return;
      const hue = lead ?? (measure === 'delta_logp' && (value ?? 1) < 0 ? 'a' : 'plus');
      const title = svg('title', {}, `${measureName(measure)} ${number(value)}`);
      const cell = svg('g', {}, title);
      const box = { x: x.toFixed(1), y: y - 16, width: width.toFixed(1), height: 22 };
      cell.append(svg('rect', { ...box, fill: colours[`${hue}-fill`], 'fill-opacity': (0.78 * shade(measure, value)).toFixed(3) }));
      if (lead !== null) cell.append(svg('rect', { ...box, y: y + 4, height: bold ? 3 : 1.5, fill: colours[lead], 'fill-opacity': bold ? 1 : 0.4 }));
      const style = { x: x.toFixed(1), y, fill: colours.ink, 'font-weight': bold ? 700 : 400, textLength: width.toFixed(1), lengthAdjust: 'spacingAndGlyphs' };
      cell.append(svg('text', style, part.replace(/ /g, '\u00a0')));
      cells.append(cell);
      x += width;
    });
  }
  const height = y + MARGIN;
  for (const [name, value] of Object.entries({ width: WIDTH, height, viewBox: `0 0 ${WIDTH} ${height}` })) root.setAttribute(name, String(value));
  root.append(
    svg('rect', { width: WIDTH, height, fill: colours.card }),
    svg('text', { x: MARGIN, y: MARGIN + 4, fill: colours.muted, 'font-family': SANS, 'font-size': 13 }, title),
    cells,
  );
  return root;
}

/** @param {SVGSVGElement} figure @param {string} name */
export function saveSvg(figure, name) {
  download(`${name}.svg`, serialised(figure), 'image/svg+xml');
}

/** @param {SVGSVGElement} figure @param {string} name */
export async function savePng(figure, name) {
  const url = URL.createObjectURL(new Blob([serialised(figure)], { type: 'image/svg+xml' }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement('canvas');
    canvas.width = PIXELS * image.width;
    canvas.height = PIXELS * image.height;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
    if (blob === null) throw new Error('The browser cannot draw a picture of this size; save it as SVG.');
    download(`${name}.png`, /** @type {Blob} */ (blob));
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** @param {SVGSVGElement} figure */
function serialised(figure) {
  return new XMLSerializer().serializeToString(figure);
}

/**
 * How often values of each size occur, in equal bins.
 *
 * @param {(number | null)[]} values @param {string} name of what is counted @returns {SVGSVGElement}
 */
export function histogram(values, name) {
  const finite = /** @type {number[]} */ (values.filter(Number.isFinite));
  const [width, height, left, bottom, top] = [560, 170, 44, 24, 10];
  const root = svg('svg', { viewBox: `0 0 ${width} ${height}`, class: 'histogram', role: 'img' });
  const low = Math.min(0, ...finite);
  const high = Math.max(...finite, low + 1e-9);
  const bins = new Array(Math.max(1, Math.min(40, Math.ceil(Math.sqrt(finite.length) * 2)))).fill(0);
  for (const value of finite) bins[Math.min(bins.length - 1, Math.floor(((value - low) / (high - low)) * bins.length))] += 1;
  const most = Math.max(...bins, 1);
  // Nearly all tokens agree: on a linear axis the few that matter would be invisible.
  const scale = (/** @type {number} */ count) => ((height - bottom - top) * Math.log1p(count)) / Math.log1p(most);
  const step = (width - left - 8) / bins.length;
  root.setAttribute('aria-label', `Histogram of ${name}: ${finite.length} finite values from ${number(low)} to ${number(high)}`);
  for (const count of marks(most)) {
    const y = height - bottom - scale(count);
    root.append(svg('line', { class: 'grid', x1: left, x2: width - 8, y1: y, y2: y }), label(String(count), left - 6, y + 4, 'end'));
  }
  bins.forEach((count, index) => {
    const bar = scale(count);
    const from = low + ((high - low) * index) / bins.length;
    const to = low + ((high - low) * (index + 1)) / bins.length;
    const title = svg('title', {}, `${number(from)} to ${number(to)}: ${count}`);
    root.append(svg('rect', { class: 'bin', x: left + index * step + 0.5, y: height - bottom - bar, width: Math.max(step - 1, 0.5), height: bar }, title));
  });
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    root.append(label(number(Number((low + part * (high - low)).toPrecision(2))), left + part * (width - left - 8), height - 8, part === 1 ? 'end' : 'middle'));
  }
  return root;
}

/** Counts worth a line: 1, 10, 100 ... and the largest. @param {number} most */
function marks(most) {
  const found = [0];
  for (let count = 1; count < most; count *= 10) found.push(count);
  if (most > 1.6 * (found.at(-1) ?? 0)) found.push(most);
  return found;
}

/** @param {string} text @param {number} x @param {number} y @param {string} anchor */
function label(text, x, y, anchor) {
  return svg('text', { class: 'tick', x, y, 'text-anchor': anchor }, text);
}
