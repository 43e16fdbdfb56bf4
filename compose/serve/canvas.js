// The drawing surface of the page: an image, marks on it, the tools box, point and brush, and buttons for files.
// props.value: {image, tool, box, marks: [{box, label, colour}], colour, radius, hint, waits}; boxes and points are fractions
// of the image. canvas.acts is what was done here and no answer has confirmed: {number, box, points, radius} or {number,
// depth}. Every event of the page brings all of it, the server does each number once, and value.done is the last
// one: so nothing is lost or done late, whichever event or answer is first. 'drag' asks for a preview, 'draw' ends a
// click, stroke or drag. Events {files, error} with the names of the buttons: names of the files that the server has
// taken from them, or why it has not. Two constants stand before this: names of the buttons, and the address that takes files.
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d'), image = new Image();
const LEAST = 1 / 4096;  // side of a box; chosen
const scale = window.devicePixelRatio || 1, clamp = (value) => Math.min(1, Math.max(0, value));
let state = {}, box = null, drag = null, points = [], last = 0, number = 0;
const shown = () => state.image && image.complete && image.naturalWidth > 0;
const dragged = () => state.tool === 'box' && drag.far;
canvas.acts = [];
canvas.act = (name, what, key) => {  // of several acts in a row with one key only the last counts
  if (key && canvas.acts.at(-1)?.key === key) canvas.acts.pop();
  canvas.acts.push({...what, key, number: number = Math.max(number, state.done ?? 0) + 1});
  last = performance.now();
  trigger(name, {});
};
const tell = (name) =>
  canvas.act(name, {box: dragged() ? box : null, points, radius: state.radius}, dragged() && drag.key);

function at(event) {
  const frame = canvas.getBoundingClientRect();
  return [clamp((event.clientX - frame.left) / frame.width), clamp((event.clientY - frame.top) / frame.height)];
}

function outline([x0, y0, x1, y1], label, colour, width) {
  const [w, h, size] = [canvas.width, canvas.height, 13 * scale];
  pen.strokeStyle = pen.fillStyle = colour; pen.lineWidth = width * scale;
  pen.strokeRect(x0 * w, y0 * h, (x1 - x0) * w, (y1 - y0) * h);
  if (!label) return;
  const wide = pen.measureText(label).width + size, left = Math.min(x0 * w, w - wide), top = Math.max(0, y0 * h - 1.6 * size);
  pen.fillRect(left, top, wide, 1.6 * size);
  pen.fillStyle = '#fff'; pen.fillText(label, left + size / 2, top + 1.15 * size);
}

function draw() {
  const aspect = shown() ? image.naturalWidth / image.naturalHeight : 1.8;
  const wide = Math.min(element.clientWidth, canvas.dataset.tall * window.innerHeight * aspect);
  if (wide < 1) return;
  canvas.width = wide * scale; canvas.height = canvas.width / aspect;
  canvas.style.cssText = `width: ${wide}px; touch-action: ${shown() && state.tool ? 'pinch-zoom' : 'auto'};
    cursor: ${shown() && state.tool ? 'crosshair' : state.waits ? 'progress' : 'pointer'}`;
  pen.font = `600 ${13 * scale}px system-ui, sans-serif`;
  if (!shown()) {
    const hint = state.hint || canvas.dataset.hint;
    pen.fillStyle = '#7a808a';
    return pen.fillText(hint, (canvas.width - pen.measureText(hint).width) / 2, canvas.height / 2);
  }
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  for (const mark of state.marks || []) outline(mark.box, mark.label, mark.colour, 2);
  if (box) outline(box, '', '#e8402a', 2.5);
  for (const [i, j] of box ? [[0, 1], [0, 3], [2, 1], [2, 3]] : []) {
    pen.beginPath(); pen.arc(box[i] * canvas.width, box[j] * canvas.height, 6 * scale, 0, 7); pen.fill();
  }
  if (state.tool !== 'brush' || !drag) return;
  pen.strokeStyle = state.colour; pen.lineCap = pen.lineJoin = 'round'; pen.globalAlpha = 0.6; pen.beginPath();
  pen.lineWidth = 2 * state.radius * Math.max(canvas.width, canvas.height);
  for (const [x, y] of points) pen.lineTo(x * canvas.width + 0.1, y * canvas.height);
  pen.stroke(); pen.globalAlpha = 1;
}

canvas.onpointerdown = (event) => {
  if (state.waits) return;
  if (!shown()) return element.querySelector('input').click();
  if (!state.tool || !event.isPrimary) return;
  canvas.setPointerCapture(event.pointerId);
  const [x, y] = at(event), near = 16 / canvas.clientWidth, nearY = 16 / canvas.clientHeight;
  drag = {from: [x, y], start: [event.clientX, event.clientY], far: false, key: `drag ${number}`};  // a new box
  if (box && x > box[0] && x < box[2] && y > box[1] && y < box[3]) drag.moves = [...box];  // or the whole box
  for (const [i, j] of box ? [[0, 1], [0, 3], [2, 1], [2, 3]] : [])  // or one of its corners
    if (Math.abs(x - box[i]) < near && Math.abs(y - box[j]) < nearY)
      drag = {...drag, from: [box[2 - i], box[4 - j]], moves: null};
  points = [[x, y]];
  draw();
};
canvas.onpointermove = (event) => {
  if (!drag) return;
  const [x, y] = at(event), [fx, fy] = drag.from;
  drag.far ||= Math.hypot(event.clientX - drag.start[0], event.clientY - drag.start[1]) > 4;
  if (state.tool === 'brush') points.push([x, y]);
  else if (state.tool === 'box' && drag.far && drag.moves) {
    const [a, b, c, d] = drag.moves;
    const [dx, dy] = [Math.min(1 - c, Math.max(-a, x - fx)), Math.min(1 - d, Math.max(-b, y - fy))];
    box = [a + dx, b + dy, c + dx, d + dy];
  } else if (state.tool === 'box' && drag.far) {
    const [x0, y0] = [Math.min(x, fx, 1 - LEAST), Math.min(y, fy, 1 - LEAST)];
    box = [x0, y0, Math.max(x, fx, x0 + LEAST), Math.max(y, fy, y0 + LEAST)];
  }
  draw();
  if (dragged() && performance.now() - last > 150) tell('drag');
};
canvas.onpointerup = () => { if (drag) tell('draw'); drag = null; points = []; };
canvas.onpointercancel = () => { drag = null; points = []; take(); };

async function give(label, files) {
  const form = new FormData(), told = {files: [], error: ''};
  for (const file of files) form.append('files', file);
  label.ariaBusy = true;
  try {
    const answer = await fetch(address, {method: 'POST', body: form}), said = await answer.json();
    if (answer.ok) told.files = said; else told.error = said.error?.message ?? answer.statusText;
  } catch { told.error = 'the file could not be sent: try again'; }
  label.ariaBusy = false;
  trigger(label.id, told);
}
for (const name of names) {
  const label = document.getElementById(name), input = label.querySelector('input');
  input.onchange = () => { if (input.files.length) give(label, [...input.files]); input.value = ''; };
}
element.ondragover = (event) => event.preventDefault();
element.ondrop = (event) => {  // on a button, or on the surface: that is on its first button
  event.preventDefault();
  const files = event.dataTransfer.files;
  if (files.length) give(event.target.closest('label') ?? element.querySelector('label'), files);
};
function take() {
  if ((props.value?.done ?? 0) < (state.done ?? 0)) return;  // an answer that was overtaken
  state = props.value || {};
  canvas.acts = canvas.acts.filter((act) => act.number > (state.done ?? 0));
  if (!drag && !canvas.acts.some((act) => act.box)) box = state.box || null;
  if (state.image && state.image !== image.src) image.src = state.image; else draw();
}
image.onload = draw;
watch('value', take);
new ResizeObserver(draw).observe(element);
take();
