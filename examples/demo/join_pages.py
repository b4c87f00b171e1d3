"""The example's queue, watched: FORKJOIN_QUEUE=examples.demo.join_pages:pages.

Without the demo it is FORKJOIN_QUEUE=pages:pages.
"""

from __future__ import annotations

import os

import pages as example

from .joins import VARIABLE, Watched

pages = Watched(example.pages, os.environ[VARIABLE])
