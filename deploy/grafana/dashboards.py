#!/usr/bin/env python3
"""The dashboards, as what they ask: writes *.json beside this file (`make dashboards`).

Prometheus gives every series an `instance`, and in Kubernetes a `namespace`; of kvscout's own families
kvscout_build_info has the pool, so others are narrowed to a pool by their instance.
A description that begins with "Empty" says when a panel has nothing to show: `make test-dashboards` lets no
other one be empty.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent


def of(family, labels=""):
    """Series of a family, in the namespaces and pools that were chosen."""
    chosen = ", ".join(filter(None, [labels, 'namespace=~"$namespace"']))
    return f"{family}{{{chosen}}}"


def chosen(expr):
    return f'({expr} and on (instance) kvscout_build_info{{pool=~"$pool"}})'


def rate(family, labels=""):
    return chosen(f"rate({of(family, labels)}[$__rate_interval])")


def total(family, by="", labels=""):
    """A counter's rate, over all replicas."""
    return f"sum{f' by ({by})' if by else ''} {rate(family, labels)}"


def most(family, by="", labels=""):
    """A gauge that every replica knows for itself: the highest."""
    return f"max{f' by ({by})' if by else ''} {chosen(of(family, labels))}"


def added(family, by=""):
    """A gauge of which each replica has a part."""
    return f"sum{f' by ({by})' if by else ''} {chosen(of(family))}"


def quantile(q, family, by=""):
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) {rate(family + '_bucket')})"


def quantiles(family, *qs):
    return [(quantile(q, family), f"p{q * 100:g}") for q in qs]


def mean(family, by=""):
    return f"{total(family + '_sum', by)} / {total(family + '_count', by)}"


def share(part, whole):
    return f"{part} / {whole}"


def timeseries(title, unit, *asked, stacked=False, why=""):
    custom = {"fillOpacity": 30 if stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal"}
    options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return panel("timeseries", title, unit, asked, why, (12, 8), options, custom)


def stat(title, unit, *asked, why=""):
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "none"}
    return panel("stat", title, unit, asked, why, (4, 4), options)


def heatmap(title, family, why=""):
    asked = (f"sum by (le) (increase({of(family + '_bucket')}[$__rate_interval]) and on (instance) "
             f'kvscout_build_info{{pool=~"$pool"}})')
    one = panel("heatmap", title, "s", [(asked, "{{le}}")], why, (12, 8), {"calculate": False, "yAxis": {"unit": "s"}})
    one["targets"][0]["format"] = "heatmap"
    return one


def panel(kind, title, unit, asked, why, size, options, custom=None):
    targets = [
        {"refId": chr(ord("A") + at), "expr": expr, "legendFormat": legend, "range": True, "editorMode": "code"}
        for at, (expr, legend) in enumerate(asked)
    ]
    defaults = {"unit": unit, "min": 0, "custom": custom or {}}
    if unit == "percentunit":
        defaults["max"] = 1
    return {
        "type": kind, "title": title, "description": why, "datasource": SOURCE, "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options,
        "gridPos": {"w": size[0], "h": size[1]},
    }


SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def variable(name, query):
    return {
        "name": name, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name},
        "definition": query, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]}, "sort": 1,
    }


def dashboard(uid, title, *panels):
    x = y = tallest = 0
    for number, one in enumerate(panels, 1):
        place = one["gridPos"]
        if x + place["w"] > 24:
            x, y, tallest = 0, y + tallest, 0
        place.update(x=x, y=y)
        one["id"] = number
        x, tallest = x + place["w"], max(tallest, place["h"])
    return {
        "uid": uid, "title": f"kvscout / {title}", "tags": ["kvscout"], "schemaVersion": 39, "editable": True,
        "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser", "graphTooltip": 1,
        "links": [{"type": "dashboards", "title": "kvscout", "tags": ["kvscout"], "asDropdown": True, "keepTime": True, "includeVars": True}],
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
            variable("namespace", "label_values(kvscout_build_info, namespace)"),
            variable("pool", 'label_values(kvscout_build_info{namespace=~"$namespace"}, pool)'),
        ]},
        "panels": list(panels),
    }


PLACED = 'outcome="placed"'
WORK = 'reason!~"no_prefill|no_body"'
LOAD_ONLY = f'basis="load_only", {WORK}'
NOT_LIVE = 'trust!="live"'
DIFFER = 'verdict="differ"'
CACHED = share(total("kvscout_predicted_cached_tokens_total"), total("kvscout_prompt_tokens_total"))
EXACT = share(total("kvscout_predictions_total", labels='verdict="exact"'), total("kvscout_predictions_total"))
SCRAPED = "Empty with load.scrape_interval_ms: 0, or where servers' metrics cannot be read."

DASHBOARDS = {
    "fleet": dashboard(
        "kvscout-fleet", "Fleet overview",
        stat("Requests", "reqps", (total("kvscout_requests_total"), "")),
        stat("Prompt tokens found in caches", "percentunit", (CACHED, ""), why="Empty without requests. As predicted, of all prompts placed."),
        stat("Prefill saved", "short", (total("kvscout_prefill_tokens_saved_total"), ""), why="Tokens a second that servers did not compute again."),
        stat("Predicted exactly", "percentunit", (EXACT, ""), why="Empty without requests, or where servers do not report cached tokens."),
        stat("Load-only share", "percentunit", (share(f"({total('kvscout_requests_total', labels=LOAD_ONLY)} or vector(0))", total("kvscout_requests_total", labels=WORK)), ""), why="Empty without requests. Requests of whose prompt nothing was known."),
        stat("Decision, p99", "s", (quantile(0.99, "kvscout_decision_seconds"), ""), why="Empty without requests."),
        timeseries("Requests by basis", "reqps", (total("kvscout_requests_total", "basis, reason", PLACED), "{{basis}} {{reason}}"), stacked=True, why="What choices rested on, and why that was not all."),
        timeseries("Requests by outcome", "reqps", (total("kvscout_requests_total", "outcome"), "{{outcome}}"), stacked=True),
        timeseries("Endpoints by trust", "short", (f"sum by (trust) ({most('kvscout_endpoint_trust', 'endpoint, trust')})", "{{trust}}"), stacked=True, why="An endpoint that replicas trust differently counts in each."),
        timeseries("Endpoints that are not live", "short", (f"{most('kvscout_endpoint_trust', 'endpoint, trust', NOT_LIVE)} > 0", "{{endpoint}} {{trust}}"), why="Empty while all are live."),
        timeseries("Prompt tokens found in caches, by endpoint", "percentunit", (share(total("kvscout_predicted_cached_tokens_total", "endpoint"), total("kvscout_prompt_tokens_total", "endpoint")), "{{endpoint}}")),
        timeseries("Cached tokens: chosen, and what a blind choice would find", "short", (total("kvscout_predicted_cached_tokens_total"), "chosen"), (total("kvscout_blind_cached_tokens_total"), "blind"), why="Tokens a second. What lies between is what choosing by cache is worth."),
        timeseries("Requests in flight, by endpoint", "short", (most("kvscout_endpoint_requests", "endpoint"), "{{endpoint}}")),
        timeseries("Prefill tokens placed and not done, by endpoint", "short", (most("kvscout_endpoint_queued_tokens", "endpoint"), "{{endpoint}}")),
        timeseries("KV cache in use, by endpoint", "percentunit", (most("kvscout_endpoint_reported_kv_usage", "endpoint"), "{{endpoint}}"), why=f"{SCRAPED} By requests that run; what is cached beside them is not counted."),
        timeseries("Requests that wait at servers", "short", (most("kvscout_endpoint_reported_requests", "endpoint", 'state="waiting"'), "{{endpoint}}"), why=SCRAPED),
        timeseries("Endpoints past a threshold, or avoided", "short", (f"sum({most('kvscout_endpoint_saturated', 'endpoint')})", "saturated"), (f"sum({most('kvscout_endpoint_avoided', 'endpoint')})", "avoided")),
        timeseries("Waiting for room, and shed", "short", (added("kvscout_admission_waiting"), "waiting"), (total("kvscout_requests_shed_total", "reason, criticality"), "shed: {{reason}} {{criticality}}"), why="Empty lines where nothing was shed."),
        timeseries("First output, by what decided", "s", (quantile(0.5, "kvscout_first_output_seconds", "decided_by"), "p50 {{decided_by}}"), (quantile(0.95, "kvscout_first_output_seconds", "decided_by"), "p95 {{decided_by}}"), why="From the choice to the first bytes of streamed answers."),
        timeseries("Replicas", "short", (f"count({chosen(of('kvscout_build_info'))})", "scraped"), (f"min {chosen(of('kvscout_replica_peers'))} + 1", "that hear each other"), why="Empty but for the first line without replicas.share."),
    ),
    "audit": dashboard(
        "kvscout-audit", "Prediction and audit",
        stat("Predicted exactly", "percentunit", (EXACT, ""), why="Empty without requests, or where servers do not report cached tokens (--enable-prompt-tokens-details)."),
        stat("Compared", "reqps", (total("kvscout_predictions_total"), "")),
        stat("Error, p99", "short", (quantile(0.99, "kvscout_prediction_error_tokens"), ""), why="Empty without comparisons. Tokens, either way."),
        stat("Mistrusted", "short", (f"sum(increase({of('kvscout_endpoint_mistrusted_total')}[$__range]))", ""), why="Times that an endpoint's picture was doubted for its predictions."),
        stat("Token ids that differ", "percentunit", (share(f"({total('kvscout_token_parity_total', labels=DIFFER)} or vector(0))", total("kvscout_token_parity_total", labels='verdict=~"agree|differ"')), ""), why="Empty where nothing was judged."),
        stat("Models read otherwise", "short", (f"sum({most('kvscout_model_prompts_doubtful', 'model')})", ""), why="Empty without a configured model. docs/runbook.md#token-parity"),
        timeseries("Predictions by verdict", "reqps", (total("kvscout_predictions_total", "verdict"), "{{verdict}}"), stacked=True),
        timeseries("Missed, by cause", "reqps", (total("kvscout_prediction_errors_total", "cause"), "{{cause}}"), stacked=True),
        timeseries("Predicted exactly, by endpoint", "percentunit", (share(total("kvscout_predictions_total", "endpoint", 'verdict="exact"'), total("kvscout_predictions_total", "endpoint")), "{{endpoint}}"), why="The pod that is wrong lies below the others."),
        timeseries("Error in tokens, mean by endpoint", "short", (mean("kvscout_prediction_error_tokens", "endpoint"), "{{endpoint}}")),
        timeseries("Cached tokens", "short", (total("kvscout_predicted_cached_tokens_total"), "predicted"), (total("kvscout_reported_cached_tokens_total"), "reported"), why="Tokens a second. Reported stays below where not every answer says."),
        timeseries("Missed, by endpoint and cause", "reqps", (f"{total('kvscout_prediction_errors_total', 'endpoint, cause')} > 0", "{{endpoint}} {{cause}}"), why="Empty while every prediction is exact."),
        timeseries("Token ids compared, by verdict", "reqps", (total("kvscout_token_parity_total", "model, verdict"), "{{model}} {{verdict}}")),
        timeseries("Matching ratio", "percentunit", *quantiles("kvscout_matching_ratio", 0.25, 0.5, 0.75), why="Predicted cached / prompt tokens."),
    ),
    "events": dashboard(
        "kvscout-events", "Event plane",
        stat("Batches", "ops", (total("kvscout_event_batches_total"), "")),
        stat("Lag, p99", "s", (quantile(0.99, "kvscout_event_lag_seconds"), ""), why="Empty without events. From the engine's clock to the index."),
        stat("Gaps", "short", (f"sum(increase({of('kvscout_event_gaps_total')}[$__range]))", "")),
        stat("Batches lost", "short", (f"sum(increase({of('kvscout_event_batches_missed_total')}[$__range]))", "")),
        stat("Index", "bytes", (most("kvscout_index_bytes"), "")),
        stat("Given up for room", "short", (f"sum(increase({of('kvscout_index_given_up_total')}[$__range]))", "")),
        timeseries("Batches by endpoint", "ops", (total("kvscout_event_batches_total", "endpoint"), "{{endpoint}}"), why="An endpoint that serves and stays at 0 does not tell: docs/runbook.md#no-events"),
        timeseries("Blocks in events", "ops", (total("kvscout_event_blocks_total", "what"), "{{what}}"), stacked=True),
        timeseries("Lag by endpoint, p99", "s", (quantile(0.99, "kvscout_event_lag_seconds", "endpoint"), "{{endpoint}}"), why="Clocks that differ between hosts are in it."),
        heatmap("Lag", "kvscout_event_lag_seconds"),
        timeseries("Gaps, and batches lost", "ops", (total("kvscout_event_gaps_total", "endpoint"), "gaps {{endpoint}}"), (total("kvscout_event_batches_missed_total", "endpoint"), "lost {{endpoint}}")),
        timeseries("Repairs by result", "ops", (total("kvscout_event_repairs_total", "result"), "{{result}}")),
        timeseries("Messages not understood", "ops", (total("kvscout_event_errors_total", "endpoint, kind"), "{{endpoint}} {{kind}}")),
        timeseries("Pictures doubted and forgotten", "ops", (total("kvscout_pictures_doubted_total", "endpoint"), "doubted {{endpoint}}"), (total("kvscout_pictures_forgotten_total", "endpoint"), "forgotten {{endpoint}}")),
        timeseries("Undecoded events that wait", "bytes", (most("kvscout_event_queue_bytes", "endpoint"), "{{endpoint}}"), why="Empty until a minute has passed without any: the gauge is set when events come."),
        timeseries("Blocks known, by endpoint", "short", (most("kvscout_endpoint_blocks", "endpoint"), "{{endpoint}}")),
        timeseries("Index", "short", (most("kvscout_index_blocks"), "blocks"), (most("kvscout_index_pairs"), "pairs")),
        timeseries("Servers' own metrics: age", "s", (most("kvscout_endpoint_report_age_seconds", "endpoint"), "{{endpoint}}"), why=SCRAPED),
    ),
    "latency": dashboard(
        "kvscout-latency", "Decision latency",
        stat("Decision, p50", "s", (quantile(0.5, "kvscout_decision_seconds"), ""), why="Empty without requests."),
        stat("Decision, p99", "s", (quantile(0.99, "kvscout_decision_seconds"), ""), why="Empty without requests."),
        stat("Decisions", "reqps", (total("kvscout_decision_seconds_count"), "")),
        stat("Prompts that wait for a core", "short", (added("kvscout_tokenizer_waiting"), "")),
        stat("Requests that wait for room", "short", (added("kvscout_admission_waiting"), "")),
        stat("Text found tokenized", "percentunit", (share(total("kvscout_token_cache_text_bytes_total", labels='result="hit"'), total("kvscout_token_cache_text_bytes_total")), ""), why="Empty without requests, or without a configured model."),
        timeseries("Decision", "s", *quantiles("kvscout_decision_seconds", 0.5, 0.9, 0.99), why="From whole body to choice, without a wait for room."),
        heatmap("Decisions", "kvscout_decision_seconds"),
        timeseries("By stage, p99", "s", (quantile(0.99, "kvscout_decision_stage_seconds", "stage"), "{{stage}}")),
        timeseries("By stage, mean", "s", (mean("kvscout_decision_stage_seconds", "stage"), "{{stage}}"), stacked=True),
        timeseries("Long prompts: wait for a core, and reading", "s", (quantile(0.99, "kvscout_tokenizer_wait_seconds"), "wait p99"), (quantile(0.99, "kvscout_tokenizer_work_seconds"), "reading p99"), (quantile(0.5, "kvscout_tokenizer_work_seconds"), "reading p50"), why="Empty while all prompts are short, which are read at once."),
        timeseries("Long prompts", "short", (added("kvscout_tokenizer_waiting"), "waiting"), (added("kvscout_tokenizer_working"), "being read")),
        timeseries("Text found tokenized, by model", "percentunit", (share(total("kvscout_token_cache_text_bytes_total", "model", 'result="hit"'), total("kvscout_token_cache_text_bytes_total", "model")), "{{model}}"), why="Empty without requests, or without a configured model."),
        timeseries("Segment caches", "bytes", (most("kvscout_token_cache_bytes", "model"), "{{model}}"), why="Empty without a configured model."),
        timeseries("Waits for room, by what ended them", "s", (quantile(0.99, "kvscout_admission_wait_seconds", "outcome"), "p99 {{outcome}}"), why="Empty where nobody had to wait."),
        timeseries("Logs", "ops", (total("kvscout_decision_log_lines_total", "outcome"), "decision log, {{outcome}}"), (total("kvscout_log_lines_lost_total"), "standard error, lost"), why="Empty of decisions without decisions.log."),
    ),
}


def main():
    stale = []
    for name, board in DASHBOARDS.items():
        file, text = HERE / f"{name}.json", json.dumps(board, indent=1, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale.append(file.name)
    if stale:
        sys.exit(f"run make dashboards: {', '.join(stale)} not as dashboards.py has it")


main()
