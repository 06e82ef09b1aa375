// Tables are sorted by a click on a column's name, within each model; the field hides rows that lack any of its words.
(function () {
  'use strict';
  const rows = Array.from(document.querySelectorAll('tbody tr:not(.group)'));

  function key(row, column) {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    if (value !== undefined) return Number(value);
    return cell.textContent.trim();
  }

  function compare(a, b) {
    if (typeof a === 'number' && typeof b === 'number') return a - b;
    if (typeof a === 'number') return -1;
    if (typeof b === 'number') return 1;
    return a.localeCompare(b, 'en', {numeric: true});
  }

  // What has no figure stays last, whatever the direction.
  function sort(table, column, sign) {
    for (const body of table.tBodies) {
      const own = Array.from(body.rows).filter((row) => !row.classList.contains('group'));
      own.sort(function (x, y) {
        const a = key(x, column), b = key(y, column);
        if (a === '' || b === '') return (a === '') - (b === '');
        return sign * compare(a, b);
      });
      own.forEach((row) => body.appendChild(row));
    }
  }

  for (const table of document.querySelectorAll('table')) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = head.textContent;
      button.addEventListener('click', function () {
        const ascending = head.getAttribute('aria-sort') !== 'ascending';
        heads.forEach((other) => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
        sort(table, column, ascending ? 1 : -1);
      });
      head.replaceChildren(button);
    });
  }

  const field = document.getElementById('filter');
  const shown = document.getElementById('shown');
  field.addEventListener('input', function () {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const model = row.parentNode.rows[0].textContent;
      const text = (model + ' ' + row.textContent).toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      if (!row.hidden) ++count;
    }
    shown.textContent = words.length ? count + ' of ' + rows.length + ' rows' : '';
  });
  document.querySelectorAll('.scripted').forEach((element) => { element.hidden = false; });
}());
