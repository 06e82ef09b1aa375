"""cases.json: chat templates of the forms that published models have, conversations, and what Jinja makes of them as transformers
calls it (its apply_chat_template; tried with jinja2 3.1.6):

    python3 make_chat.py

    python3 make_chat.py FOLDER OUT     the same of real templates, every *.jinja of FOLDER: chat_template_test compares them, too,
                                        if ROUNDHOUSE_CHAT_CASES names OUT

A case without "text" is one that the template refuses.
"""

import json
import pathlib
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml with a system message": "{%- for message in messages %}\n    {%- if loop.first and messages[0].role != 'system' %}\n"
    "        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n    {%- endif %}\n"
    "    {{- \"<|im_start|>\" ~ message.role ~ \"\\n\" ~ message.content | trim ~ '<|im_end|>\\n' -}}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "llama 3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role']"
               " + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
               "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}",
    "llama 3 with dates": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{#- The system message comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
""",
    "mistral": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
               "{{ raise_exception('Roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
               "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
               "{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}",
    "mistral with a system message": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("no such role: " + message.role) }}
    {%- endif %}
{%- endfor %}
{{- "\\n" ~ ns.index ~ " of " ~ user_messages | length }}
""",
    "gemma 2": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
               "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
               "{{ raise_exception('Roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}"
               "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
               "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "gemma 3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set before_first = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set before_first = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set before_first = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (before_first if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("neither a text nor a list") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
""",
    "thoughts": """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last or (loop.last and thought) %}
            {%- set content = '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}""",
    "white space": """{# a comment #}
  {% for message in messages if message.role != 'system' %}
    <{{ message.role }}>   {{- message.content }}
  {% else_ignored %}""".replace("{% else_ignored %}", "{% endfor %}") + """
 {%+ if true %} kept {% endif +%}
text
	{%- if false -%}
 x
{%- elif messages | length > 1 and not false -%}
   many {{ loop is defined }}
{%- else %} one {% endif %}
{{ "brace } in text" }}{{ {'a': 1}['a'] }} {{ [1, 2][-1] }} {{ -3 % 2 }} {{ 7 // 2 }} {{ none is none }} {{ undefined_thing }}|
""",
    "methods": "{% for m in messages %}{{ m.get('name', 'nobody') }} {{ m.role.upper() }} {{ m['content'].replace('a', 'bb') }} "
               "{{ m.content[1:3] }}{{ m.content[::-1] }} {{ m.content | length }}{{ (m.name | default('x')) ~ loop.index ~ loop.revindex }} "
               "{{ 'é' in m.content and 1 < 2 or false }}{% for key, value in {'k': m.role}.items() %}{{ key }}={{ value }};{% endfor %}"
               "{{ ['a', m.role] | join(', ') }}{{ loop.previtem.role if loop.previtem is defined else '-' }}\\\n{% generation %}g{% endgeneration %}"
               "{{ m.content if m.role == 'user' }}{{ 1 if m.tool else 2 if loop.first else 3 }}{{ not m.content.endswith('?') }}{% endfor %}",
}

CONVERSATIONS = [
    [{"role": "user", "content": "  What is 2+2? "}, {"role": "assistant", "content": "4\n"}, {"role": "user", "content": "And é 3?"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "Hi, abc"},
     {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nHello, \U0001f642."}],
    [{"role": "user", "content": "a\u3000"}, {"role": "user", "content": "b{{ x }}"}],
    [{"role": "user", "content": ""}],
]


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.globals["raise_exception"] = raise_exception
    return made


def main():
    templates, out = TEMPLATES, HERE / "cases.json"
    if len(sys.argv) > 1:
        templates = {file.stem: file.read_text() for file in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja"))}
        out = pathlib.Path(sys.argv[2])
    cases = []
    for name, source in templates.items():
        # What marks the assistant's words in training is taken out by transformers.
        plain = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        template = environment().from_string(plain)
        case = {"name": name, "template": source, "texts": []}
        for messages in CONVERSATIONS:
            try:
                text = template.render(messages=messages, tools=None, documents=None, add_generation_prompt=False, **TOKENS)
            except jinja2.exceptions.TemplateError:
                text = None
            case["texts"].append(text)
        cases.append(case)
    out.write_text(json.dumps({"conversations": CONVERSATIONS, "tokens": TOKENS, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
