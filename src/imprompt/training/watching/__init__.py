"""The record of a run: its log, its terminal, its page, its model card."""

from imprompt.training.watching.card import write_card
from imprompt.training.watching.display import Display
from imprompt.training.watching.log import RunLog, write_environment
from imprompt.training.watching.page import write_page

__all__ = ["Display", "RunLog", "write_card", "write_environment", "write_page"]
