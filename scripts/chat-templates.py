#!/usr/bin/env python3
"""Writes what transformers renders from chat templates in the idioms of published checkpoints.

    chat-templates.py crates/sparsegpt-models/src/chat/templates.json

Needs transformers, jinja2. The tests of `sparsegpt_models::chat` hold our own renderings against the file.
"""

import datetime
import json
import sys

from transformers.utils import chat_template_utils

NOW = datetime.datetime(2024, 7, 6, 5, 4, 3)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": " Answer in verse. "}
USER = {"role": "user", "content": "  What is a <hacker> & \"why\"?\n"}
ANSWER = {"role": "assistant", "content": "One who 'enjoys' limits: {{ 1 }} é\n"}
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, USER],
    "system_turns": [SYSTEM, USER, ANSWER, USER],
    "answer_first": [ANSWER, USER],
}

TEMPLATES = {
    "chatml with a system message of its own": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "headers, the first token before the first message": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start|>' + message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
    ),
    "instructions in brackets, roles that alternate": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "no system message": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "lines and indents": (
        "{%- if messages[0]['role'] == 'system' -%}\n    {%- set system = messages[0]['content'] -%}\n"
        "    {%- set rest = messages[1:] -%}\n{%- else -%}\n    {%- set system = '' -%}\n"
        "    {%- set rest = messages -%}\n{%- endif -%}\n\n{{ bos_token }}\n{% for m in rest %}\n"
        "    {% if m.role == 'user' %}\n  Q: {{ m.content }}\n    {% else %}\n  A: {{ m.content.rstrip() }}{{ eos_token }}\n"
        "    {% endif %}\n{# a remark #}\n{% endfor %}\n   {%+ if add_generation_prompt %} A:{% endif +%}\n\n"
    ),
    "tools that are none, and json": (
        "{%- if tools %}\n{{- '# Tools\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}"
        "{%- for message in messages %}{{- message | tojson }}\n"
        "{{- {'n': [1, 2.5, true, none], 'html': message.content} | tojson(indent=2) }}{%- endfor %}"
        "{{- messages | tojson(ensure_ascii=true) }}"
    ),
    "namespaces, methods, tests": (
        "{%- set ns = namespace(last=-1, words=[]) %}{%- for message in messages %}"
        "{%- if message.role == 'user' and message.content is string and not message.get('tool_calls') %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set words = message.content.strip().split(' ') %}"
        "{{- words[0].upper() ~ words[-1].lower() ~ words | length }}"
        "{%- if message.content.startswith('One') and 'limits' in message.content %}{{- ' yes' }}{%- endif %}"
        "{%- if loop.index0 == ns.last %}{{- ' last' }}{%- endif %}{{- loop.last ~ '' if false else '|' }}"
        "{{- message.content.split('</think>')[-1].lstrip('\\n').replace('a', 'b') }}"
        "{%- for key, value in message.items() %}{{- key ~ '=' ~ value | length ~ ';' }}{%- endfor %}"
        "{%- endfor %}{%- if pad_token is defined %}{{- pad_token }}{%- else %}{{- 'no pad' }}{%- endif %}"
        "{{- messages | map(attribute='role') | join(',') }}{{- messages[::-1][0].role }}"
    ),
    "macros, loops left early": (
        "{% macro turn(role, content='') %}[{{ role | title }}] {{ content | trim }}{% endmacro %}"
        "{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}"
        "{{ turn(message.role, message.content) }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
        "{{ turn('assistant') if add_generation_prompt }}"
    ),
    "the day": (
        "{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set date = '26 Jul 2024' %}{%- endif %}{{- 'Today: ' + date + strftime_now(' %Y-%m-%d %H:%M %A') }}"
        "{{- messages[0].content }}"
    ),
    "answers marked for training": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{%- generation -%}\n"
        " {{ message.content }} {% endgeneration %}\n|{% else %}{{ message.content }}{% generation %}!{% endgeneration %}"
        "{% endif %}{% endfor %}"
    ),
    "whoever is not known": "{{ messages[0].nobody }}|{{ tools }}|{{ true }}|{{ messages | length }}|{{ nobody }}",
    "an attribute of nothing": "{{ nobody.name.first }}",
    "a wrong operation": "{{ messages + 1 }}",
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, messages, add_generation_prompt):
    rendered, _ = chat_template_utils.render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        **TOKENS,
    )
    return rendered[0]


def main():
    chat_template_utils.datetime = Clock
    cases = []
    for name, template in TEMPLATES.items():
        for conversation, messages in CONVERSATIONS.items():
            for add_generation_prompt in (False, True):
                case = {
                    "template": name,
                    "conversation": conversation,
                    "add_generation_prompt": add_generation_prompt,
                }
                try:
                    case["rendered"] = render(template, messages, add_generation_prompt)
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    document = {
        "now": NOW.isoformat(),
        "special_tokens": TOKENS,
        "templates": TEMPLATES,
        "conversations": CONVERSATIONS,
        "cases": cases,
    }
    with open(sys.argv[1], "w") as file:
        json.dump(document, file, indent=1, ensure_ascii=False)
        file.write("\n")


main()
