// Where a tab says what goes on. props.value: {work, number, text, info, error}: kinds of what the server does for the
// visitor, number of the answer, HTML; and what is said once. It asks until there is no work. Numbers that do not follow
// each other are of answers that were lost, overtook each other or failed: the page may then show anything, and asks for
// all of it. Event 'ask' {work}: what the page knows to go on, or null. Two constants stand before this: ms between two
// questions, and until one counts as lost.
let last = 0, gap = false, asked = 0, answered = true;
watch('value', () => {
  const {number, info, error} = props.value;
  gap = number !== last + 1;
  last = Math.max(last, number);
  answered = true;
  if (info) trigger('info', info);
  if (error) trigger('error', error);
});
setInterval(() => {
  const {work} = props.value, now = performance.now();
  if (!(gap || work.length) || !(answered || now - asked > LATE)) return;
  answered = false; asked = now;
  trigger('ask', {work: gap ? null : work});
}, POLL);
