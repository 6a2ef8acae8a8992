"""A model of your own photographs, one folder a class, that learns new classes when the old images are gone.

  python experiments/folder.py --model=model --train_dir=photos             # creates it
  python experiments/folder.py --model=model --train_dir=new_photos         # later: new classes; the first are gone
  python experiments/folder.py --model=model --predict image.jpg more/      # --json: a line of JSON an image
"""

from abd_jax import experiment, learner_command

if __name__ == '__main__':
  experiment.start(learner_command.define_flags, learner_command.run)
