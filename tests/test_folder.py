"""Photographs in folders: how files become pixels, and two days' work at the prompt."""

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from abd_jax import learner_command as prompt
from abd_jax.data import folder
from abd_jax.errors import UserError

ROOT = Path(__file__).parent.parent
RED = (255, 0, 0)


def read(path, size=4):
  images, readable, unreadable = folder.read_files([path], size)
  assert readable.tolist() == [True] and unreadable == []
  return images[0]


def halves(mode='RGB', width=16, height=16):
  """An image whose upper half is white and whose lower half is black."""
  image = Image.new('L', (width, height), 0)
  image.paste(255, (0, 0, width, height // 2))
  return image.convert(mode)


def save(image, path, **options):
  image.save(path, **options)
  return path


MODES = {
    'a.png': ('RGB', 'L', '1', 'P'), 'a.jpg': ('RGB', 'L', 'CMYK'), 'a.JPEG': ('RGB',), 'a.webp': ('RGB', 'L', 'P'),
}


@pytest.mark.parametrize('name, mode', [(name, mode) for name, modes in MODES.items() for mode in modes])
def test_formats_and_colours_come_to_the_same_pixels(tmp_path, name, mode):
  options = {'a.png': {}, 'a.webp': {'lossless': True}}.get(name, {'quality': 100})
  pixels = read(save(halves(mode), tmp_path / name, **options))
  assert pixels.shape == (4, 4, 3) and pixels.dtype == np.uint8
  expected = np.array([255, 255, 0, 0])[:, None, None] * np.ones((1, 4, 3))
  # The cubic reaches over the edge into the rows beside it; a JPEG is near.
  np.testing.assert_allclose(pixels[[0, 3]], expected[[0, 3]], atol=6)
  np.testing.assert_allclose(pixels[[1, 2]], expected[[1, 2]], atol=20)


def test_the_square_in_the_middle_is_what_the_model_sees(tmp_path):
  # 12 wide, 4 high: columns 4 to 7 are the middle square.
  pixels = np.zeros((4, 12, 3), np.uint8)
  pixels[:, 4:8] = np.arange(4)[None, :, None] * 60 + 20
  wide = read(save(Image.fromarray(pixels), tmp_path / 'wide.png'))
  np.testing.assert_array_equal(wide[0, :, 0], [20, 80, 140, 200])
  high = read(save(Image.fromarray(pixels.transpose(1, 0, 2)), tmp_path / 'high.png'))
  np.testing.assert_array_equal(high[:, 0, 0], [20, 80, 140, 200])


def test_small_images_are_enlarged(tmp_path):
  assert read(save(Image.new('RGB', (1, 1), RED), tmp_path / 'one.png'), size=8).tolist() == [[list(RED)] * 8] * 8


# What EXIF's numbers mean: where the picture's first row and first column are on the sensor.
UPRIGHT = np.array([[10, 60], [110, 160]], np.uint8)
STORED = {
    1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1],
    5: UPRIGHT.T, 6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].T, 8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize('orientation', STORED)
@pytest.mark.parametrize('name', ['a.png', 'a.webp'])
def test_images_are_turned_upright(tmp_path, orientation, name):
  exif = Image.Exif()
  exif[0x0112] = orientation
  image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
  options = {} if name == 'a.png' else {'lossless': True}
  path = save(image.convert('RGB'), tmp_path / name, exif=exif, **options)
  np.testing.assert_array_equal(read(path, 2)[..., 0], UPRIGHT)


def test_transparent_parts_lie_over_white(tmp_path):
  for name in ('a.png', 'a.webp'):
    see_through = save(Image.new('RGBA', (4, 4), (*RED, 0)), tmp_path / name)
    assert read(see_through).min() == 255
  # Half of red over white: 255, and 255 - 128 of the others.
  assert read(save(Image.new('RGBA', (4, 4), (*RED, 128)), tmp_path / 'half.png'))[0, 0].tolist() == [255, 127, 127]
  assert read(save(Image.new('LA', (4, 4), (0, 0)), tmp_path / 'grey.png')).min() == 255
  palette = Image.new('P', (4, 4), 1)
  palette.putpalette([0, 0, 0, *RED])
  assert read(save(palette, tmp_path / 'solid.png'))[0, 0].tolist() == list(RED)
  assert read(save(palette, tmp_path / 'hole.png', transparency=1)).min() == 255


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
  levels = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
  np.testing.assert_array_equal(
      read(save(Image.fromarray(levels), tmp_path / 'deep.png'), 2)[..., 0], [[0, 100], [200, 255]]
  )


def truncated(path):
  content = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(content, 'png')
  path.write_bytes(content.getvalue()[:1000])


def enormous(path):
  """A PNG of a few bytes that says it has 10^10 pixels."""

  def chunk(kind, data=b''):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', 100_000, 100_000, 8, 2, 0, 0, 0)
  chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND')
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)


def test_files_that_cannot_be_read_are_named_with_a_reason(tmp_path):
  save(halves(), tmp_path / 'good.png')
  (tmp_path / 'empty.jpg').touch()
  (tmp_path / 'text.png').write_text('not a picture')
  Image.new('RGB', (4, 4)).save(tmp_path / 'other.bmp')
  truncated(tmp_path / 'truncated.png')
  enormous(tmp_path / 'huge.png')
  files = folder.files_below(tmp_path)
  images, readable, unreadable = folder.read_files(files, 4)
  assert [path.name for path, _ in unreadable] == ['empty.jpg', 'huge.png', 'other.bmp', 'text.png', 'truncated.png']
  reasons = {path.stem: reason for path, reason in unreadable}
  assert 'truncated' in reasons.pop('truncated') and reasons.pop('huge') == 'more than 178,956,970 pixels'
  assert set(reasons.values()) == {'not a JPEG, PNG or WebP image'}
  assert len(images) == 1 and [file.name for file, kept in zip(files, readable, strict=True) if kept] == ['good.png']


def test_classes_are_folders_by_name(tmp_path):
  for path in ('pear/deep/2.png', 'pear/1.png', 'apple/3.png', 'apple/.hidden', '.git/config'):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
  found = folder.class_files(tmp_path)
  assert [(name, [file.name for file in files]) for name, files in found.items()] == [
      ('apple', ['3.png']), ('pear', ['1.png', '2.png']),
  ]


# At the prompt.

TINY = (
    '--student=resnet8', '--image_size=8', '--epochs=2', '--decay_at=1', '--inversion_steps=2',
    '--inversion_batch_size=4',
)


def process(*arguments):
  """The script in a process of its own."""
  command = [sys.executable, 'experiments/folder.py', *map(str, arguments)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
  return done


def run(*arguments):
  """The script's work in this process."""
  values = flags.FlagValues()
  prompt.define_flags(values)
  _, *rest = values(['folder.py', *map(str, arguments)])
  prompt.run(rest, values)


def photographs(where, *names, each=2):
  rng = np.random.default_rng(len(names[0]))
  for name in names:
    (where / name).mkdir(parents=True)
    for i in range(each):
      image = Image.fromarray(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8))
      image.save(where / name / f'{i}.{("png", "jpg", "webp")[i % 3]}')
  return where


@pytest.fixture(scope='module')
def two_days(tmp_path_factory):
  """A model of two classes that one process makes; another extends it by one of one image, the first images gone."""
  where = tmp_path_factory.mktemp('days')
  first, second = photographs(where / 'first', 'cat', 'dog', each=3), photographs(where / 'second', 'emu', each=1)
  (first / 'cat' / 'broken.jpg').write_text('no picture')
  model, image = where / 'model', second / 'emu' / '0.png'
  made = process(f'--model={model}', f'--train_dir={first}', '--skip_unreadable', *TINY)
  shutil.rmtree(first)
  extended = process(f'--model={model}', f'--train_dir={second}', '--json', '--predict', second, image)
  return where, made, extended


def test_two_days_work_needs_the_saved_model_alone(two_days):
  where, made, extended = two_days
  assert 'knows 2 classes now' in made.stdout and 'knows 3 classes now' in extended.stderr
  assert 'With 6 images the batch is reduced from 128 to 6' in made.stdout
  assert 'broken.jpg cannot be read: not a JPEG, PNG or WebP image.' in made.stderr
  description = json.loads((where / 'model' / 'model.json').read_text())
  assert description['tasks'] == [['cat', 'dog'], ['emu']] and description['config']['student'] == 'resnet8'
  assert not (where / 'model.lesson').exists()


def test_predictions_are_lines_of_json(two_days):
  where, _, extended = two_days
  lines = [json.loads(line) for line in extended.stdout.splitlines()]  # what was learned on the way went elsewhere
  assert [line['file'] for line in lines] == 2 * [str(where / 'second' / 'emu' / '0.png')]
  for line in lines:
    assert set(line['probabilities']) == {'cat', 'dog', 'emu'}
    assert line['class'] == max(line['probabilities'], key=line['probabilities'].get)
    assert sum(line['probabilities'].values()) == pytest.approx(1)


def test_a_table_and_an_evaluation_for_people(two_days, capsys):
  where, *_ = two_days
  second = where / 'second'
  run(f'--model={where / "model"}', f'--test_dir={second}', '--predict', second / 'emu' / '0.png')
  *_, evaluation, header, row = capsys.readouterr().out.splitlines()
  assert evaluation in ('0.00 % of 1 images are named rightly.', '100.00 % of 1 images are named rightly.')
  assert header.split() == ['file', 'class', 'probability'] and row.split()[1] in ('cat', 'dog', 'emu')


def test_unreadable_files_are_listed_and_skipped_only_if_told_so(tmp_path, capsys):
  photographs(tmp_path / 'photos', 'cat', 'dog')
  (tmp_path / 'photos' / 'cat' / 'broken.jpg').write_text('no picture')
  (tmp_path / 'photos' / 'eel').mkdir()
  (tmp_path / 'photos' / 'eel' / 'only.jpg').touch()
  learn = (f'--model={tmp_path / "model"}', f'--train_dir={tmp_path / "photos"}', *TINY)
  with pytest.raises(UserError, match='2 of 6 files cannot be read: remove them, or pass --skip_unreadable.'):
    run(*learn)
  said = capsys.readouterr().err
  assert 'broken.jpg cannot be read: not a JPEG' in said and 'only.jpg cannot be read' in said
  with pytest.raises(UserError, match='eel has no file that can be read: a class needs at least one image.'):
    run(*learn, '--skip_unreadable')


def test_a_lesson_s_folder_that_holds_something_else_is_left_alone(tmp_path):
  photos, model = photographs(tmp_path / 'photos', 'cat'), tmp_path / 'model'
  lesson = tmp_path / 'model.lesson'
  lesson.mkdir()
  (lesson / 'notes.txt').write_text('precious')
  sentence = 'model.lesson is where lessons of .* are kept, and holds something else: move it away.'
  with pytest.raises(UserError, match=sentence):
    run(f'--model={model}', f'--train_dir={photos}', *TINY)
  assert (lesson / 'notes.txt').read_text() == 'precious'
  (lesson / 'notes.txt').unlink()
  shutil.move(photos, lesson / 'photos')
  (lesson / 'flags.txt').write_text('--dataset=images:0123\n')
  with pytest.raises(UserError, match=sentence):
    run(f'--model={model}', f'--train_dir={lesson / "photos"}', *TINY)
  assert len(list(lesson.rglob('*.*g'))) == 2


def test_a_model_has_one_lesson_at_a_time_and_a_stopped_one_is_named(tmp_path, monkeypatch):
  model, lesson = tmp_path / 'model', tmp_path / 'model.lesson'
  first, second = photographs(tmp_path / 'first', 'cat'), photographs(tmp_path / 'second', 'emu')
  teach = (f'--model={model}', *TINY)
  started = []

  def stopped(self, images, labels, names, workdir):
    with pytest.raises(UserError, match=f'--model={model} is in use by another lesson: wait for its end.'):
      run(*teach, f'--train_dir={second}')
    started.append(list(names))
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(prompt.Learner, 'learn', stopped)
    with pytest.raises(KeyboardInterrupt):
      run(*teach, f'--train_dir={first}')
  assert started == [['cat']] and not lesson.exists()  # nothing in it was worth keeping
  # Killed while it claimed its folder.
  lesson.mkdir()
  (lesson / '.lock').touch()
  with monkeypatch.context() as patch:
    patch.setattr(prompt.Learner, 'learn', stopped)
    with pytest.raises(KeyboardInterrupt):
      run(*teach, f'--train_dir={first}')
  assert started == 2 * [['cat']] and not lesson.exists()
  # One that left something; then other images.
  lesson.mkdir()
  (lesson / 'flags.txt').write_text('--dataset=images:0123\n')
  with pytest.raises(UserError, match='model.lesson holds a lesson of other images or settings that was stopped: give'):
    run(*teach, f'--train_dir={first}')
  assert (lesson / 'flags.txt').exists()


@pytest.mark.parametrize('also, sentence', [
    ('--test_dir={where}/none', 'There is no {where}/none.'),
    ('--test_dir={where}/others', '{where}/others/yak is of a class that {where}/model does not know.'),
    ('--predict={where}/none.jpg', 'There is no {where}/none.jpg.'),
    ('--export={where}/photos/cat/0.png', '{where}/photos/cat/0.png cannot be written: File exists.'),
])
def test_all_that_is_asked_for_is_looked_for_before_anything_is_learned(tmp_path, monkeypatch, also, sentence):
  photographs(tmp_path / 'photos', 'cat')
  photographs(tmp_path / 'others', 'yak', 'cat')
  monkeypatch.setattr(prompt.Learner, 'learn', lambda *args, **kwargs: pytest.fail('it learned'))
  with pytest.raises(UserError) as refusal:
    run(f'--model={tmp_path}/model', f'--train_dir={tmp_path}/photos', also.format(where=tmp_path), *TINY)
  assert str(refusal.value) == sentence.format(where=tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['others', 'photos']  # and nothing is left behind


@pytest.mark.parametrize('arguments, sentence', [
    (('--model={model}', '--train_dir={second}'), 'The model knows emu already'),
    (('--model={model}', '--train_dir={second}', '--image_size=16'), 'image_size=8, which cannot be changed to 16'),
    (('--model={model}', '--test_dir={other}'), 'yak is of a class that .* does not know'),
    (('--model={model}', '--predict={other}/none.png'), 'There is no .*none.png'),
    (('--model={model}', 'image.jpg'), 'There is nothing to do'),
    (('--model={model}', '--train_dir={second}', 'image.jpg'), 'Unexpected argument image.jpg'),
    (('--model={model}-none', '--predict', 'image.jpg'), 'holds no model yet: the first call needs --train_dir'),
    (('--model={second}', '--train_dir={second}'), 'holds emu and no model.json: choose another directory'),
    (('--predict', 'image.jpg'), '--model must name the directory'),
])
def test_what_the_user_can_mend_gets_a_sentence(two_days, tmp_path, arguments, sentence):
  where, *_ = two_days
  places = {'model': where / 'model', 'second': where / 'second', 'other': photographs(tmp_path / 'other', 'yak')}
  with pytest.raises(UserError, match=sentence):
    run(*(argument.format(**places) for argument in arguments))
