"""What transformers and Jinja2 make of the templates in tests/fixtures/templates, one line a case.

`make check-templates` runs it and compares with the stored expected.jsonl; `cargo test --test
templates` compares kvscout with that. Cases are requests; what vLLM changes in them before the
template is done here, as far as they need it.
"""

import datetime
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import transformers.utils.chat_template_utils as chat_templates  # noqa: E402

FOLDER = Path(__file__).parent / "fixtures" / "templates"


class Clock(datetime.datetime):
    """The moment that every case is rendered at: a Thursday."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 2, 29, 13, 5, 9)


def source(name):
    return (FOLDER / name).read_bytes().decode()


def message(given, content_format):
    """A message as vLLM hands it to the template."""
    out = dict(given)
    if "reasoning_content" in out:
        out["reasoning"] = out["reasoning_content"]
    # In the order of OpenAI's typed dicts, as pydantic rebuilds them.
    if calls := out.pop("tool_calls", None):
        out["tool_calls"] = [
            {
                "id": call["id"],
                "function": {
                    "arguments": json.loads(call["function"]["arguments"]),
                    "name": call["function"]["name"],
                },
                "type": call["type"],
            }
            for call in calls
        ]
    if content_format == "openai" and isinstance(out["content"], str):
        out["content"] = [{"type": "text", "text": out["content"]}]
    if out["content"] is None:
        out["content"] = ""
    return out


def render(case):
    request = json.loads(json.dumps(case["request"]))
    kwargs = {**case.get("special_tokens", {}), **request.get("chat_template_kwargs", {})}
    kwargs["add_generation_prompt"] = request.get("add_generation_prompt", True)
    tools = request.get("tools")
    templates = case["templates"]
    template = templates["tool_use" if tools and "tool_use" in templates else "default"]
    messages = [message(one, case.get("content_format")) for one in request["messages"]]
    try:
        rendered, _ = chat_templates.render_jinja_template(
            [messages],
            tools=tools,
            documents=request.get("documents"),
            chat_template=source(template) if template.endswith(".jinja") else template,
            continue_final_message=request.get("continue_final_message", False),
            **kwargs,
        )
    except Exception as error:  # noqa: BLE001: whatever a template raises, vLLM answers 400
        return {"id": case["id"], "raises": type(error).__name__}
    return {"id": case["id"], "rendered": rendered[0]}


def cases():
    """Whole templates with conversations, then expressions: a line is a template."""
    for line in source("cases.jsonl").split("\n"):
        if line:
            yield json.loads(line)
    request = json.loads(source("request.json"))
    for name in ["expressions.txt", "refused.txt"]:
        for number, line in enumerate(source(name).split("\n"), 1):
            if line:
                id = f"{name}:{number}"
                yield {"id": id, "templates": {"default": line}, "request": request}


if __name__ == "__main__":
    chat_templates.datetime = Clock
    for case in cases():
        sys.stdout.write(json.dumps(render(case), ensure_ascii=False) + "\n")
