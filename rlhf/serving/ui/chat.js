// The script of the chat tab, run by Gradio with `element`, `trigger`, `props` and `watch` of the component `keeper`.
// It keeps conversations in this browser, draws their list, and turns clicks on the transcript into these events:
// 'open', 'example', 'edit', 'retry', 'proceed', 'pick', 'rate', 'bring', 'export', 'halt'.
// All text enters the page through textContent or value, never as HTML.
const root = element.closest('#chat');
const STORE = 'rlhf.chat.conversation.';
const CURRENT = 'rlhf.chat.current';
const DRAFT = 'rlhf.chat.draft';
const kept = storage('localStorage');
const session = storage('sessionStorage');
const wide = window.matchMedia('(min-width: 1001px)');
const fine = window.matchMedia('(pointer: fine)');
const words = props.words[language()];
let removed = null; // the conversation that was deleted last
let renaming = null; // id of the conversation whose title is being edited
const titles = {}; // id -> title given by hand
const copies = {}; // id -> id of its copy, see save
const seen = {}; // id -> `updated` of the conversation as this page has it
let atEnd = true; // the newest message is in sight
let refocus = null; // finds the button that had the focus, in the transcript that is drawn anew

// The browser's storage; of this page only, where the browser has none or forbids it.
function storage(name) {
  try {
    window[name].getItem('');
    return window[name];
  } catch {
    const values = new Map();
    return {
      getItem: (key) => values.get(key) ?? null,
      setItem: (key, value) => { values.set(key, String(value)); },
      removeItem: (key) => { values.delete(key); },
      key: (i) => [...values.keys()][i] ?? null,
      get length() { return values.size; },
    };
  }
}

// False where there is no room.
function put(where, key, value) {
  try {
    where.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

function language() {
  for (const name of navigator.languages || [navigator.language]) {
    const short = String(name).toLowerCase().split('-')[0];
    if (short === 'ko' || short === 'en') return short;
  }
  return 'en';
}

function make(tag, values = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name === 'text') node.textContent = value;
    else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const part = (name) => root.querySelector('#chat-' + name);
const box = () => root.querySelector('#chat-box textarea');
const busy = () => Boolean(root.querySelector('#chat-live .turn'));

function say(text) {
  const line = root.querySelector('#chat-notice .notice');
  if (line) line.textContent = text;
}

function focusBox() {
  const input = box();
  if (input && fine.matches) input.focus({preventScroll: true});
}

function setBox(text) {
  const input = box();
  if (!input) return;
  input.value = text;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  input.setSelectionRange(text.length, text.length);
}

// An answer under way belongs to its conversation: stop it and wait for its end before another one is shown.
function whenIdle(action, tries = 100) {
  if (!busy()) return action();
  if (tries === 100) trigger('halt');
  if (tries > 0) setTimeout(() => whenIdle(action, tries - 1), 50);
}

// ---- conversations ----------------------------------------------------------------------------------------------

// null for what is no conversation: somebody else may have written it.
function load(id) {
  try {
    const conversation = JSON.parse(kept.getItem(STORE + id));
    const isMessage = (node) => typeof node.role === 'string' && typeof node.text === 'string';
    return conversation.id === id && conversation.nodes.every(isMessage) ? conversation : null;
  } catch {
    return null;
  }
}

// Returns the conversation as it is kept: as a copy, if another page has changed it since this one read it.
function save(conversation) {
  if (!conversation || !conversation.nodes || !conversation.nodes.length) return conversation;
  const stored = load(conversation.id);
  if (stored && seen[conversation.id] && stored.updated !== seen[conversation.id]) {
    const digits = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, '0'));
    // The answer that grows will come under the old id once more.
    copies[conversation.id] ??= digits.join('');
    conversation = {...conversation, id: copies[conversation.id]};
  }
  seen[conversation.id] = conversation.updated;
  if (!put(kept, STORE + conversation.id, JSON.stringify(conversation))) say(words.full);
  return conversation;
}

function all() {
  const result = [];
  for (let i = 0; i < kept.length; i++) {
    const key = kept.key(i);
    if (!key.startsWith(STORE)) continue;
    const conversation = load(key.slice(STORE.length));
    if (conversation) result.push(conversation);
  }
  return result.sort((a, b) => String(b.updated).localeCompare(String(a.updated)));
}

const currentId = () => session.getItem(CURRENT);

function show(conversation) {
  if (conversation) {
    seen[conversation.id] = conversation.updated;
    delete copies[conversation.id];
  }
  props.value = conversation;
  if (conversation) put(session, CURRENT, conversation.id);
  else session.removeItem(CURRENT);
  atEnd = true;
  trigger('open');
  draw();
}

function open(id) {
  whenIdle(() => {
    show(load(id));
    drawer(null);
    focusBox();
  });
}

function startNew() {
  whenIdle(() => {
    show(null);
    say('');
    drawer(null);
    focusBox();
  });
}

function remove(id) {
  whenIdle(() => {
    removed = load(id);
    kept.removeItem(STORE + id);
    if (id === currentId()) show(null);
    draw();
    element.querySelector('.undo button')?.focus();
  });
}

function undo() {
  save(removed);
  const id = removed.id;
  removed = null;
  open(id);
}

function rename(id, title) {
  renaming = null;
  const conversation = load(id);
  if (conversation && title.trim()) {
    conversation.title = title.trim().slice(0, 80);
    titles[id] = conversation.title;
    save(conversation);
    if (id === currentId()) props.value = conversation;
  }
  draw();
}

function importFile(input) {
  const file = input.files[0];
  input.value = '';
  if (!file) return;
  if (file.size > 2000000) return say(words.tooBig);
  file.text().then((content) => whenIdle(() => trigger('bring', {content})));
}

function day(updated) {
  const date = new Date(updated);
  if (isNaN(date)) return '';
  const today = new Date().toDateString() === date.toDateString();
  const form = today ? {hour: 'numeric', minute: '2-digit'} : {month: 'short', day: 'numeric'};
  return new Intl.DateTimeFormat(language(), form).format(date);
}

function item(conversation) {
  const id = conversation.id;
  const current = id === currentId();
  const title = conversation.title || words.untitled;
  if (renaming === id) {
    const input = make('input', {type: 'text', maxlength: 80, 'aria-label': words.rename});
    input.value = title;
    const form = make('form', {class: 'rename', onsubmit: (event) => {
      event.preventDefault();
      rename(id, input.value);
    }}, input, make('button', {type: 'submit', class: 'plain', text: words.save}));
    input.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return;
      renaming = null;
      draw();
    });
    setTimeout(() => input.select());
    return make('li', {class: 'current'}, form);
  }
  const button = make('button', {
    type: 'button', class: 'title', 'aria-current': current ? 'true' : false, onclick: () => open(id),
  }, make('span', {text: title}), make('time', {text: day(conversation.updated)}));
  const node = make('li', {class: current ? 'current' : ''}, button);
  if (current) {
    const tool = (text, name, action) => make('button', {
      type: 'button', class: 'plain', text, 'aria-label': name + ': ' + title, title: name, onclick: action,
    });
    node.append(make('div', {class: 'tools'},
      tool(words.rename, words.rename, () => { renaming = id; draw(); }),
      tool('.md', words.saveMarkdown, () => trigger('export', {form: 'markdown'})),
      tool('.json', words.saveJson, () => trigger('export', {form: 'json'})),
      make('span', {class: 'gap'}),
      tool(words.remove, words.remove, () => remove(id)),
    ));
  }
  return node;
}

function draw() {
  const side = element.querySelector('.side');
  if (!side) return;
  const conversations = all();
  const list = make('ul', {'aria-label': words.list}, ...conversations.map(item));
  const file = make('input', {type: 'file', accept: '.json', hidden: true, onchange: () => importFile(file)});
  const parts = [
    make('div', {class: 'side-head'},
      make('button', {type: 'button', class: 'new', text: '+ ' + words.newChat, onclick: startNew}),
      make('button', {type: 'button', class: 'plain close', text: '✕', 'aria-label': words.close,
        onclick: () => drawer(null)})),
  ];
  if (removed) {
    parts.push(make('div', {class: 'undo', role: 'status'},
      make('span', {text: words.removed}),
      make('button', {type: 'button', class: 'plain', text: words.undo, onclick: undo})));
  }
  parts.push(list);
  parts.push(make('div', {class: 'side-foot'},
    make('p', {text: words.empty}),
    make('button', {type: 'button', class: 'plain', text: words.import, onclick: () => file.click()}),
    file));
  side.replaceChildren(...parts);
}

watch('value', () => {
  let conversation = props.value;
  if (!conversation || !conversation.id) return;
  // It may have been renamed while an answer grew.
  const title = titles[conversation.id];
  if (title && title !== conversation.title) {
    conversation = {...conversation, title};
  }
  conversation = save(conversation);
  if (conversation !== props.value) props.value = conversation;
  if (conversation.nodes.length) put(session, CURRENT, conversation.id);
  draw();
});

// ---- the transcript ---------------------------------------------------------------------------------------------

const nodeText = (index) => props.value?.nodes?.[index]?.text ?? '';

function copy(text, button) {
  const done = () => {
    const name = button.getAttribute('aria-label');
    button.classList.add('done');
    say(words.copied);
    setTimeout(() => { button.classList.remove('done'); button.setAttribute('aria-label', name); }, 1200);
  };
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(done, () => {});
  // A page without https, opened from another machine, has no clipboard.
  const area = make('textarea', {class: 'heard'});
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
  done();
}

// A small form below a message: one text, save and cancel.
function ask(turn, {name, text, many, save, act}) {
  turn.querySelector('form.ask')?.remove();
  const input = make(many ? 'textarea' : 'input', {'aria-label': name, placeholder: name, maxlength: many ? 32000 : 500});
  input.value = text;
  const close = () => { form.remove(); turn.classList.remove('asking'); };
  const form = make('form', {class: 'ask', onsubmit: (event) => {
    event.preventDefault();
    close();
    act(input.value);
  }}, input, make('div', {class: 'row'},
    make('button', {type: 'submit', class: 'filled', text: save}),
    make('button', {type: 'button', class: 'plain', text: words.cancel, onclick: close})));
  input.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') close();
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  turn.classList.toggle('asking', Boolean(many));
  turn.append(form);
  if (many) input.rows = Math.min(8, text.split('\n').length + 1);
  input.focus();
}

function act(button) {
  const node = Number(button.dataset.node);
  const turn = button.closest('.turn');
  // The same button of the same turn. An arrow at its end is disabled: then the other one.
  const position = [...root.querySelectorAll('#chat-talk .turn')].indexOf(turn);
  const {act: name, value} = button.dataset;
  const label = button.getAttribute('aria-label');
  refocus = name !== 'pick' && name !== 'thumb' ? null : () => {
    const drawn = root.querySelectorAll('#chat-talk .turn')[position];
    const buttons = [...(drawn?.querySelectorAll(`[data-act="${name}"]`) ?? [])].filter((item) => !item.disabled);
    return buttons.find((item) => item.getAttribute('aria-label') === label && item.dataset.value === value) ?? buttons[0];
  };
  switch (button.dataset.act) {
    case 'copy':
      return copy(nodeText(node), button);
    case 'example':
      atEnd = true;
      if (!busy()) trigger('example', {text: button.textContent});
      return focusBox();
    case 'edit':
      return ask(turn, {name: words.edited, text: nodeText(node), many: true, save: words.sendAgain,
        act: (text) => { atEnd = true; if (text.trim() && !busy()) trigger('edit', {node, text}); focusBox(); }});
    case 'thumb':
      return ask(turn, {name: words.why, text: '', save: words.rate,
        act: (reason) => busy() || trigger('rate', {node, value: button.dataset.value, reason})});
    case 'retry':
      atEnd = true;
      focusBox();
      return busy() || trigger('retry', {node});
    case 'proceed':
      atEnd = true;
      focusBox();
      return busy() || trigger('proceed', {node});
    case 'pick':
      return busy() || trigger('pick', {node});
  }
}

root.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button && root.contains(button)) act(button);
  const opener = event.target.closest('#chat-open-side, #chat-open-settings');
  if (opener) drawer(opener.id.replace('chat-open-', ''));
});

root.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && root.dataset.drawer) drawer(null);
  if (event.target !== box() || event.isComposing) return;
  if (event.key === 'Enter' && !event.shiftKey) atEnd = true;
  if (event.key === 'ArrowUp' && event.target.value === '') {
    const asked = (props.value?.nodes ?? []).filter((node) => node.role === 'user');
    if (!asked.length) return;
    event.preventDefault();
    setBox(asked[asked.length - 1].text);
  }
});

// ---- drawers, on a narrow page -------------------------------------------------------------------------------

function drawer(name) {
  const before = root.dataset.drawer;
  if (before === name) name = null;
  if (name) root.dataset.drawer = name;
  else delete root.dataset.drawer;
  for (const side of ['side', 'settings']) {
    part('open-' + side)?.setAttribute('aria-expanded', String(side === name));
  }
  if (name) part(name)?.querySelector('button, input, textarea')?.focus();
  else if (before && !wide.matches) part('open-' + before)?.focus();
}

document.addEventListener('pointerdown', (event) => {
  const name = root.dataset.drawer;
  if (!name || wide.matches) return;
  if (!event.target.closest('#chat-' + name + ', #chat-open-' + name)) drawer(null);
});

// ---- scrolling --------------------------------------------------------------------------------------------------

function attachThread(tries = 200) {
  const thread = part('thread');
  if (!thread || !box()) {
    if (tries > 0) setTimeout(() => attachThread(tries - 1), 25);
    return;
  }
  const jump = make('button', {type: 'button', class: 'jump', text: '↓', 'aria-label': words.newest, title: words.newest,
    hidden: true, onclick: () => { atEnd = true; toEnd(); focusBox(); }});
  part('main').append(jump);
  const toEnd = () => { thread.scrollTop = thread.scrollHeight; };
  const place = () => {
    const active = document.activeElement;
    if (refocus && (active === document.body || active.disabled)) refocus()?.focus({preventScroll: true});
    if (atEnd) toEnd();
    jump.hidden = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
  };
  thread.addEventListener('scroll', () => {
    atEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
    jump.hidden = atEnd;
  }, {passive: true});
  new MutationObserver(place).observe(thread, {childList: true, subtree: true, characterData: true});
  new ResizeObserver(place).observe(thread);
  const draft = session.getItem(DRAFT);
  if (draft && !box().value) setBox(draft);
  session.removeItem(DRAFT);
  for (const side of ['side', 'settings']) part('open-' + side)?.setAttribute('aria-expanded', 'false');
  focusBox();
}

window.addEventListener('pagehide', () => {
  if (box()?.value) put(session, DRAFT, box().value);
});

// The same conversation went on in another tab of the browser.
window.addEventListener('storage', (event) => {
  if (!event.key?.startsWith(STORE)) return;
  const id = currentId();
  const changed = id && event.key === STORE + id ? load(id) : null;
  if (changed && !busy()) show(changed);
  else draw();
});

// ---- is the server there? -----------------------------------------------------------------------------------

let missed = 0;
async function look() {
  let there = false;
  try {
    there = (await fetch(new URL('health', document.baseURI), {cache: 'no-store'})).status < 500;
  } catch { /* not there */ }
  if (!there && ++missed === 2) say(words.offline);
  if (there && missed >= 2) say(words.back);
  if (there) missed = 0;
  setTimeout(look, missed ? 2000 : 10000);
}

const last = currentId() && load(currentId());
if (last) seen[last.id] = last.updated;
props.value = last || null;
draw();
attachThread();
setTimeout(() => { trigger('open'); look(); });
