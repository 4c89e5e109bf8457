"""Tunes from sentences: ABC read, written, drawn and heard; data of texts and tunes; a model's tunes and their measure.

abc/           the notation: its tokens, a tune's notes and bars, one plain spelling, other keys
midi.py        a tune as MIDI
sound.py       ... as sound
mei.py         ... as the notation that an engraver reads
score.py       ... as a score, by verovio in a child process
tempo.py       how fast it is played where nobody says
likeness.py    how alike melodies are, whatever their key
words.py       what a sentence says of a tune, and what it asks of one
vocabulary.py  the tokens of plain tunes
books.py       where tunes are from
data.py        texts and tunes to train on, split so that versions of one tune are on one side
config.py      the options of the verbs
recipe.py      the halves of a model that writes tunes, and how they are trained
grammar.py     which token may come next, so that a tune is whole
request.py     what is asked of a model
compose.py     tunes out of a model, free or by the grammar
measure.py     what can be said of a tune without listening
rivals.py      what a model has to beat
evaluate.py    how good its tunes are, on texts of tunes that it never saw
"""
