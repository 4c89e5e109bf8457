"""Train, evaluate and start models: data, schedules, the loop, optimizer state.

config.py     the options of init, train and evaluate (imports nothing heavy)
text/         documents out of files of any common format, folders, `datasets` and the standard library
encoder.py    documents to token ids, and what stands between documents
chat.py       chats by the tokenizer's template, and where in them the assistant answers
tokens.py     the documents as memory-mapped tokens, split by document
split.py      which documents are held out
images.py     labelled images in files, and which are held out
glyphs.py     letters of matplotlib's fonts, as images
image_dataset.py labelled images of a dataset
image_source.py  which of these
pixels.py     images as a model reads them
order.py      the order of the batches
tokenizer.py  byte-level BPE for models from scratch
model.py      checkpoint folder <-> transformers model
ties.py       parameters that are one, and are written twice
schedule.py   learning rate as a function of tokens
rate.py       its peak, where none is given
budget.py     how many tokens a run trains on
freezing.py   what stays as it is for a while
losses.py     cross entropy, load-balance and z loss; expert load
objectives/   what a run learns: batches, what the model is called with, losses, evaluation
held.py       whole weights and moments, gathered by all ranks
optimizer.py  AdamW, and its moments under the weights' own names
state.py      what a run needs to continue bit for bit
archive.py    its saved states as an archive
averages.py   averages of its weights, of which any length can be made afterwards
metrics.py    metrics.jsonl
device.py     accelerate's devices, precision, memory
plan.py       what a run is going to do, checked beforehand
price.py      what it would cost
step.py       one update of the weights
session.py    the run around the steps
interrupts.py Ctrl-C
prepare.py    from folder and options to the first step
finish.py     the folder a run leaves
loop.py       train
evaluate.py   evaluate
rouge.py      ROUGE
writing.py    texts that are written, and how near they come to those they should be
blank.py      a model of any family that has no weights yet
init.py       init_model
utility.py    utility of each expert
"""
