"""A model of your own photographs, one folder a class, that learns new classes when the old images are gone.

  python experiments/folder.py --model=model --train_dir=photos             # creates it
  python experiments/folder.py --model=model --train_dir=new_photos         # later: new classes; the first are gone
  python experiments/folder.py --model=model --predict image.jpg more/      # --json: a line of JSON an image
"""

from abd_jax import experiment, folder

if __name__ == '__main__':
  experiment.start(folder.define_flags, folder.run)
