"""ABC notation, one voice: abcnotation.com/wiki/abc:standard:v2.1.

header.py   tunes out of a file, and the fields above each
lexer.py    the tokens of a body: one table of patterns
keys.py     keys and modes
metre.py    metres and units
reader.py   notes with pitch, onset and duration, in bars
playing.py  what sounds when: repeats played out, ties joined
bars.py     whether the bars add up
plain.py    one spelling, which models read and write; other keys
layout.py   a plain tune as a file for people
"""
