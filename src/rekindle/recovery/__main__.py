"""The process that workers are made by."""

from rekindle.recovery.nursery import serve

if __name__ == "__main__":
    serve()
