"""Training in a pipeline of processes that outlives them. From the outside in:

pipeline.py   a stepper over processes: its two phases, and what happens when one dies
stages.py     the stages as one: said to all of them, and made again
policies.py   what a lost stage is made of
fleet.py      the processes: who is there, what they are told, who is dead
crew.py       those of them that are this machine's
meeting.py    where all meet, who supervises, and who lends
door.py       who comes in
lender.py     a machine that lends its processes to a run
split.py      how a model is cut
wire.py       messages, and who may send them
injected.py   failures that are asked for

And in each process:

nursery.py    where workers come from
__main__.py   its process
worker.py     listens and answers
seat.py       a stage at work: its optimizer and its commands
recovering.py what it gives to others and takes from them where one is lost
moments.py    Adam's moments on that way
shadows.py    the weights of the stage before, kept up to date
passes.py     the chunks of a step on their way through the stages, in one order or two
stage.py      its module
group.py      the process group of a generation
dying.py      kills itself when that was asked for

And without any, weeks of it on paper:

config.py     the options
failures.py   when stages die: drawn, or read
damage.py     what a death costs, and where that is known from
simulate.py   a run with these deaths, from outage to outage
compare.py    all policies with the same deaths, and which one pays
"""
