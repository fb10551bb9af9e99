"""The form of a recipe as HTML: every key that its dataclasses have, the most used first, the rest with a search.

The browser asks `check_form` while somebody types, and shows the command and the field that is wrong.
"""

import json
import re

from rlhf.serving.ui.run_view import escape
from rlhf.serving.ui.setting_helps import help_of
from rlhf.serving.ui.texts import text

# The keys that people set most, per recipe. A recipe that is not listed has those of "".
FIRST_KEYS = {
    "": (
        "model_name_or_path",
        "dataset_name",
        "eval_dataset_name",
        "num_train_epochs",
        "learning_rate",
        "per_device_train_batch_size",
        "max_length",
        "seed",
    ),
    "tokenizer": ("dataset_name", "tokenizer_type", "vocab_size", "lowercase", "chat"),
    "word_vectors": (
        "dataset_name",
        "architecture",
        "vector_size",
        "window",
        "min_count",
        "sample",
        "epochs",
        "nearest_to",
        "analogies",
        "similarity_pairs",
        "seed",
    ),
    "pretrain": (
        "dataset_name",
        "objective",
        "from_scratch",
        "tokenizer_name_or_path",
        "model_name_or_path",
        "hidden_size",
        "layers",
        "block_size",
        "num_train_epochs",
        "learning_rate",
        "per_device_train_batch_size",
        "seed",
    ),
    "dpo": (
        "model_name_or_path",
        "dataset_name",
        "loss_type",
        "beta",
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "use_peft",
        "max_completion_length",
        "seed",
    ),
    "kto": (
        "model_name_or_path",
        "dataset_name",
        "beta",
        "desirable_weight",
        "undesirable_weight",
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "use_peft",
        "max_completion_length",
        "seed",
    ),
    "ilql": (
        "model_name_or_path",
        "dataset_name",
        "expectile",
        "gamma",
        "cql_coef",
        "advantage_coef",
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "use_peft",
        "max_completion_length",
        "seed",
    ),
    "ppo": (
        "model_name_or_path",
        "reward_model_path",
        "dataset_name",
        "algorithm",
        "total_episodes",
        "kl_coef",
        "learning_rate",
        "rollout_batch_size",
        "per_device_train_batch_size",
        "max_completion_length",
        "value_model",
        "seed",
    ),
}
IN_THE_NAME = ("output_dir",)  # the form's own field for the name
MODEL_KEYS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "ref_model",
    "reward_model_path",
    "watch_reward_model_path",
    "value_model",
    "embeddings_from",
)
FILE_KEYS = (
    "dataset_name",
    "eval_dataset_name",
    "ptx_dataset_name",
    "demonstrations",
    "analogies",
    "similarity_pairs",
)

CSS = """
.run-form {display: flex; flex-direction: column; gap: 14px;}
.run-form .fields {display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px 18px;}
.run-form .field {display: flex; flex-direction: column; gap: 3px; min-width: 0;}
.run-form label {font-weight: 550; font-size: 0.9rem; overflow-wrap: anywhere;}
.run-form input, .run-form select {width: 100%; min-height: 38px; padding: 6px 10px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--input-background-fill);
  color: var(--body-text-color); font: inherit; font-size: 0.92rem;}
.run-form input::placeholder {color: var(--body-text-color-subdued); opacity: 1;}
.run-form input:focus-visible, .run-form select:focus-visible, .run-form button:focus-visible,
  .run-form summary:focus-visible {outline: 2px solid var(--primary-500); outline-offset: 1px;}
.run-form .given input, .run-form .given select {border-color: var(--primary-500);}
.run-form .field small {color: var(--body-text-color-subdued); font-size: 0.78rem; line-height: 1.35;}
.run-form .wrong {color: #dc2626; font-size: 0.82rem;} .dark .run-form .wrong {color: #fca5a5;}
.run-form [aria-invalid=true] {border-color: #dc2626 !important;}
.run-form details > summary {cursor: pointer; font-weight: 600; padding: 8px 0;}
.run-form h4 {margin: 18px 0 6px; font-size: 0.9rem; color: var(--body-text-color-subdued); font-weight: 600;}
#runs-feedback-commands .problem {color: #dc2626; margin: 0;} .dark #runs-feedback-commands .problem {color: #fca5a5;}
.run-form .search {max-width: 380px; margin: 4px 0 10px;}
.run-form .command {margin: 0; padding: 12px 14px; border-radius: 10px; background: var(--background-fill-secondary);
  overflow: auto; font-size: 0.82rem; white-space: pre; max-height: 300px;}
.run-form .actions {display: flex; flex-wrap: wrap; gap: 10px; align-items: center;}
.run-form button {min-height: 38px; padding: 6px 18px; border-radius: 10px; cursor: pointer; font: inherit;
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
  color: var(--body-text-color);}
.run-form button.start {background: var(--button-primary-background-fill); color: white; font-weight: 600;
  border-color: transparent;}
.run-form button:disabled {opacity: 0.5; cursor: not-allowed;}
"""

# One line per idea. `element`, `trigger`, `server` and `watch` are what gr.HTML gives.
SCRIPT = """
const one = (selector) => element.querySelector(selector);
const fields = () => [...element.querySelectorAll('[data-key]')];
let timer = 0, turn = 0;
function facts() {
  const root = one('.run-form');
  if (!root) return null;
  const given = {};
  for (const field of fields()) {
    const changed = field.value !== field.dataset.given;
    field.closest('.field').classList.toggle('given', changed);
    if (changed) given[field.dataset.key] = field.value;
  }
  return {recipe: root.dataset.recipe, config: root.dataset.config, name: one('.run-name').value,
    layout: one('.run-layout').value, arguments: given};
}
function show(answer) {
  one('.command').textContent = answer.command || '';
  const button = one('.start');
  button.disabled = !answer.ready;
  for (const wrong of element.querySelectorAll('.field .wrong')) wrong.remove();
  for (const field of element.querySelectorAll('[aria-invalid]')) field.removeAttribute('aria-invalid');
  one('.problem').textContent = answer.problem || '';
  const field = answer.key === 'name' ? one('.run-name') : fields().find((item) => item.dataset.key === answer.key);
  if (!field || !answer.problem) return;
  field.setAttribute('aria-invalid', 'true');
  const wrong = document.createElement('span');
  wrong.className = 'wrong';
  wrong.textContent = answer.problem;
  field.closest('.field').append(wrong);
}
async function check() {
  const asked = facts();
  if (!asked) return;
  const mine = ++turn;
  try {
    const answer = await server.check_form(asked);
    if (mine === turn && one('.run-form')) show(answer);
  } catch (error) { if (mine === turn && one('.problem')) one('.problem').textContent = String(error); }
}
function search(wanted) {
  for (const group of element.querySelectorAll('.all-keys section')) {
    let any = false;
    for (const field of group.querySelectorAll('.field')) {
      const fits = field.textContent.toLowerCase().includes(wanted.toLowerCase());
      field.hidden = !fits; field.style.display = fits ? '' : 'none'; any = any || fits;
    }
    group.hidden = !any;
  }
}
element.addEventListener('input', (event) => {
  if (event.target.matches('.search')) return search(event.target.value);
  clearTimeout(timer);
  turn++;  // an answer on its way is about older values
  if (one('.start')) one('.start').disabled = true;  // what starts is what the command shows
  timer = setTimeout(check, 350);
});
element.addEventListener('click', (event) => {
  if (event.target.closest('.start')) trigger('start', facts());
  const copy = event.target.closest('.copy');
  if (copy) navigator.clipboard.writeText(one('.command').textContent).then(() => {
    const before = copy.textContent; copy.textContent = copy.dataset.done;
    setTimeout(() => { copy.textContent = before; }, 1500);
  });
});
watch('value', check);
check();
"""


def form_html(
    recipe: str,
    form: dict,
    *,
    config: str = "",
    name: str = "",
    values: dict | None = None,
    suggestions: dict[str, list[str]] | None = None,
    layouts: tuple[str, ...] = (),
    language: str = "en",
) -> str:
    """The form of a recipe.

    form: `rlhf.commands.forms.describe_recipes()[recipe]`. config: the YAML whose values are shown. values: of keys that
    are filled in. suggestions: "models" and "files" to choose from. layouts: of processes.
    """
    values = values or {}
    # Values of the settings file are shown in the fields, and only what differs from them is sent.
    preset = config_values(form, config)
    first = FIRST_KEYS.get(recipe, FIRST_KEYS[""])
    keys = {key["name"]: key for key in form["keys"] if key["name"] not in IN_THE_NAME}
    # Keys that are filled in, or that the settings file sets, are seen without a search.
    shown = [key for key in first if key in keys]
    shown += [key for key in [*values, *preset] if key in keys and key not in shown]
    top = [field_html(keys[key], preset, values, language) for key in shown]
    groups: dict[str, list[str]] = {}
    for key, facts in keys.items():
        if key not in shown:
            field = field_html(facts, preset, values, language)
            groups.setdefault(facts["group"], []).append(field)
    sections = []
    for group, group_fields in groups.items():
        title = escape(group or text("form.training", language))
        sections.append(
            f"<section><h4>{title}</h4><div class='fields'>{''.join(group_fields)}</div></section>"
        )
    # How many are behind the fold.
    count = sum(map(len, groups.values()))
    parts = [
        name_field(name, layouts, language),
        f"<div class='fields'>{''.join(top)}</div>",
        f"<details class='all-keys'><summary>{escape(text('form.all', language, n=count))}</summary>",
        f"<input class='search' type='search' aria-label=\"{escape(text('form.search', language))}\" "
        f'placeholder="{escape(text("form.search", language))}">',
        *sections,
        "</details>",
        datalists(suggestions or {}),
        f"<h4 id='command-title'>{escape(text('form.command', language))}</h4>",
        "<pre class='command' tabindex='0' aria-labelledby='command-title'></pre>",
        "<p class='problem wrong' role='status'></p>",
        "<div class='actions'>",
        f"<button type='button' class='start' disabled>{escape(text('form.start', language))}</button>",
        f"<button type='button' class='copy' data-done=\"{escape(text('form.copied', language))}\">"
        f"{escape(text('form.copy', language))}</button></div>",
    ]
    return (
        f'<div class=\'run-form\' data-recipe="{escape(recipe)}" data-config="{escape(config)}">'
        f"{''.join(parts)}</div>"
    )


def config_values(form: dict, config: str) -> dict:
    """The keys that a settings file of the recipe sets."""
    for entry in form["configs"]:
        if entry["name"] == config:
            return entry["values"]
    return {}


def name_field(name: str, layouts: tuple[str, ...], language: str) -> str:
    """The name of the run, and the processes that it runs in."""
    options = [f"<option value=''>{escape(text('form.one_process', language))}</option>"]
    options += [f"<option>{escape(layout)}</option>" for layout in layouts]
    return (
        "<div class='fields'><div class='field'>"
        f"<label for='run-name'>{escape(text('form.name', language))}</label>"
        f"<input id='run-name' class='run-name' value=\"{escape(name)}\" autocomplete='off' spellcheck='false'>"
        f"<small>{escape(text('form.name.help', language))}</small></div>"
        f"<div class='field'><label for='run-layout'>{escape(text('form.layout', language))}</label>"
        f"<select id='run-layout' class='run-layout'>{''.join(options)}</select>"
        f"<small>{escape(text('form.layout.help', language))}</small></div></div>"
    )


def field_html(key: dict, preset: dict, values: dict, language: str) -> str:
    """One key: its name, an input for its kind, its help and its range."""
    name = key["name"]
    given = value_text(key, preset[name]) if name in preset else ""
    value = value_text(key, values[name]) if name in values else given
    default = value_text(key, key["default"])
    note = help_of(key, language)
    if key["range"]:
        note += f" ({key['range']})"
    if key["kind"] == "list":
        note += f" {text('form.list', language)}."
    note = escape(note.strip())
    common = (
        f"id='key-{escape(name)}' data-key='{escape(name)}' data-given=\"{escape(given)}\" "
        f"aria-describedby='help-{escape(name)}'"
    )
    if key["kind"] == "bool":
        control = bool_select(common, value, given, default, language)
    else:
        control = text_input(key, common, value, default)
    return (
        f"<div class='field'><label for='key-{escape(name)}'>{escape(name)}</label>{control}"
        f"<small id='help-{escape(name)}'>{note}</small></div>"
    )


def value_text(key: dict, value) -> str:
    """A value as a person would type it; "" for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if isinstance(value, dict):
        if key["name"] == "columns":
            return ",".join(f"{ours}={theirs}" for ours, theirs in value.items())
        return json.dumps(value)
    return str(value)


def bool_select(common: str, value: str, given: str, default: str, language: str) -> str:
    """Yes or no. The empty choice keeps what the settings file or the recipe says."""
    options = []
    # A flag cannot unset what the file sets, so then there is no empty choice.
    if not given:
        options.append(("", text("form.default", language, value=default or "-")))
    options += [("true", "true"), ("false", "false")]
    items = []
    for option, shown in options:
        chosen = " selected" if option == value else ""
        items.append(f"<option value='{option}'{chosen}>{escape(shown)}</option>")
    return f"<select {common}>{''.join(items)}</select>"


def text_input(key: dict, common: str, value: str, default: str) -> str:
    """A text or a number, with what one may choose from."""
    attributes = [common, f'value="{escape(value)}"', f'placeholder="{escape(default)}"']
    if key["kind"] in ("int", "float"):
        # Not type=number: it hides what somebody types wrong, and the check could not say why.
        attributes.append("inputmode='decimal'")
    list_name = list_of(key)
    if list_name:
        attributes.append(f"list='{list_name}'")
    options = ""
    if key["choices"]:
        items = [f'<option value="{escape(choice)}">' for choice in key["choices"]]
        options = f"<datalist id='{list_name}'>{''.join(items)}</datalist>"
    return f"<input {' '.join(attributes)} autocomplete='off' spellcheck='false'>{options}"


def list_of(key: dict) -> str:
    """The id of the list that an input chooses from, or ""."""
    if key["choices"]:
        return f"choices-{key['name']}"
    if key["name"] in MODEL_KEYS:
        return "run-models"
    if key["name"] in FILE_KEYS:
        return "run-files"
    return ""


def datalists(suggestions: dict[str, list[str]]) -> str:
    """The models and files that inputs suggest."""
    lists = []
    for kind, items in suggestions.items():
        options = [f'<option value="{escape(item)}">' for item in items]
        lists.append(f"<datalist id='run-{escape(kind)}'>{''.join(options)}</datalist>")
    return "".join(lists)


def key_of(problem: str, names: list[str]) -> str:
    """The key that an error is about: the first that its text names as `key=`, `key:` or `'key'`, or "name"."""
    if problem.startswith("name"):
        return "name"
    first, position = "", len(problem) + 1
    for name in names:
        match = re.search(rf"(?<![\w-]){re.escape(name)}(?=[=:])|(?<=[`']){re.escape(name)}(?=[`'])", problem)  # fmt: skip
        match = match or re.search(rf"(?<![\w-])--{re.escape(name)}(?![\w-])", problem)
        if match and match.start() < position:
            first, position = name, match.start()
    return first
