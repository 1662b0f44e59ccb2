"""``python -m mtlfast``."""

from mtlfast.cli import main

raise SystemExit(main())
