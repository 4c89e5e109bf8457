"""The process that workers are made by, with all that they need imported."""

from transformers import AutoConfig, AutoModelForCausalLM

from rekindle.recovery.nursery import serve

LOADED = (AutoConfig, AutoModelForCausalLM)  # which transformers imports when they are first asked for

if __name__ == "__main__":
    serve()
