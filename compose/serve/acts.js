(...values) => {
  // The second input of an event becomes what was done on the surfaces, each act with the two inputs after it,
  // which say what a stroke does. Data of the events would not do: "always_last" of Gradio 6.31 sends old ones.
  values[1] = {};
  for (const name of NAMES) {
    values[1][name] = document.querySelector(`#${name}-canvas canvas`).acts;
    for (const act of values[1][name]) act.means ??= values.slice(2, 4);
  }
  return values;
}
