# SPDX-License-Identifier: MIT
"""The parts of scripts/prepare_data.py."""
