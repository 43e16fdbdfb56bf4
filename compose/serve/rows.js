({names, prompts}, table) => {
  // The browser changes the table itself: it alone knows what is typed meanwhile, which stays.
  const old = Object.fromEntries(table.data.map((row) => [row[0], row]));
  const data = names.map((name) => [name, old[name]?.[1] || prompts[name] || '', old[name]?.[2] || '']);
  return JSON.stringify(data) === JSON.stringify(table.data) ? {__type__: 'update'} : {...table, data};
}
