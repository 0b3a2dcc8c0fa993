"""Judgments of anyone as figures with intervals, tables and a page."""
