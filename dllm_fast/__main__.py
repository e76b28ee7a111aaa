"""python -m dllm_fast is the command dllm-fast."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
