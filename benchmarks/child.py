"""Main module of the fresh interpreter in which one case runs.

Workers of some contenders import the main module again, so nothing is imported at the top: what
they pay for is their own pool, not this file.

    python -m benchmarks.child MODULE:FUNCTION CONTENDER PARAMS-AS-JSON RESULT-FILE
"""


def main(function: str, contender: str, params: str, result_file: str) -> None:
    import faulthandler
    import importlib
    import json
    import os
    import signal

    from benchmarks import adapter, contenders

    # The harness asks for every stack this way before it kills a case that hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    module, _, name = function.partition(":")
    case = getattr(importlib.import_module(module), name)
    try:
        answer = case(contenders.BY_NAME.get(contender), json.loads(params))
    except adapter.NotApplicable as reason:
        answer = {"not_applicable": str(reason)}
    with open(result_file + ".part", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.rename(result_file + ".part", result_file)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
