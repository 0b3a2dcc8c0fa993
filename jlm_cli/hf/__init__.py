"""The parts of the real engine (hf_engine.py): packed passes, attention, layers, reasons."""
