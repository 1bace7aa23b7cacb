"""Chat templates by the names under which they are known, for base models that come without one.

Each writes what its family's own template writes for plain turns. A tokenizer that has no token
for a mark like <|im_end|> writes it as several; a turn then ends with EOS as well.
"""

PREFIX = "preset://"

_START = "{{ bos_token if bos_token else '' }}"
_ASSISTANT = "{% if add_generation_prompt %}"
_SYSTEM_FIRST = (
    "{% set says = messages[0].role == 'system' %}"
    "{% set first = messages[0].content ~ '\n\n' if says else '' %}"
    "{% set turns = messages[1:] if says else messages %}{% for m in turns %}"
)
"""For families whose system prompt stands at the beginning of the first user's turn."""

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>"
        "{{ '\n' }}{% endfor %}" + _ASSISTANT + "<|im_start|>assistant{{ '\n' }}{% endif %}"
    ),
    "llama-3": (
        _START + "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
        "{{ '\n\n' }}{{ m.content | trim }}<|eot_id|>{% endfor %}"
        + _ASSISTANT
        + "<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{% endif %}"
    ),
    "gemma": (
        _START + _SYSTEM_FIRST + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}"
        "{{ '\n' }}{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>{{ '\n' }}"
        "{% endfor %}" + _ASSISTANT + "<start_of_turn>model{{ '\n' }}{% endif %}"
    ),
    "mistral": (
        _START + _SYSTEM_FIRST + "{% if m.role == 'user' %}[INST] {{ first if loop.first else '' }}"
        "{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "phi-3": (
        "{% for m in messages %}<|{{ m.role }}|>{{ '\n' }}{{ m.content }}<|end|>{{ '\n' }}"
        "{% endfor %}" + _ASSISTANT + "<|assistant|>{{ '\n' }}{% endif %}"
    ),
    "phi-4": (
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>"
        "{% endfor %}" + _ASSISTANT + "<|im_start|>assistant<|im_sep|>{% endif %}"
    ),
}
"""Name → Jinja."""
