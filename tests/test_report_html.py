"""The page of a run and of several: what it says, that it is whole in itself, and how it looks in a browser."""

import base64
import dataclasses
import html
import html.parser
import io
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from abd_jax import config, data, train
from abd_jax.config import with_values
from abd_jax.pictures import load_synthetic
from abd_jax.report import charts, pages
from abd_jax.report import command as report
from abd_jax.results import Results
from tests.small_runs import TINY
from tests.test_tables import full_cifar100

ROOT = Path(__file__).parent.parent
NAMES = ('<script>alert(1)</script>', 'R&D', '"quoted" \'name\'', '{{ 7 * 7 }}', *'456789')
SHORT = with_values(TINY, dict(num_classes=4, num_tasks=2))
DIAGNOSTICS = {
    'after_task': 2,
    'populations': {'real_old': 70, 'real_new': 72, 'synthetic': None},
    'mid': {'real_old_real_new': 9.125, 'real_old_synthetic': 4.5, 'real_new_synthetic': None},
    'mmd': {'real_old_real_new': 0.25, 'real_old_synthetic': 0.0625, 'real_new_synthetic': 0.5},
    'under_teacher': {'mid': {'real_old_real_new': 7.0}, 'mmd': None},
    'dead_features': 3,
    'tsne': {'real_old': [[0, 1], [2, 3]], 'real_new': [[5, 5]], 'synthetic': None},
    'confusion_by_task': [[0.75, 0.25], [0.0, 1.0]],
    'calibration': {
        'ece': 0.034, 'bins': [
            {'confidence': 0.5, 'accuracy': 0.25, 'count': 4}, {'confidence': 0.9, 'accuracy': 1.0, 'count': 5},
            {'confidence': None, 'accuracy': None, 'count': 0},
        ],
    },
    'synthetic': {'class_frequencies': {NAMES[0]: 0.875, 'R&D': 0.125}, 'confidence': {NAMES[0]: 0.98, 'R&D': None}},
    'feature_drift': {NAMES[0]: 0.111},
    'memorisation': {'pixels': {'median_synthetic': 0.5, 'median_real': 0.4, 'share_nearer': 0.0625}},
}
_EMPTY = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class Page(html.parser.HTMLParser):
  """What a page holds: tags with their attributes in order, headings, and text by the innermost tag it is in."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.headings, self.texts, self._open = [], [], [], []
    self.feed(text)
    assert self._open == []

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in _EMPTY:
      self._open.append(tag)
    if re.fullmatch('h[1-6]', tag):
      self.headings.append([int(tag[1]), ''])

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag, (tag, self.getpos())

  def handle_data(self, text):
    if self._open and re.fullmatch('h[1-6]', self._open[-1]):
      self.headings[-1][1] += text
    if text.strip() and 'style' not in self._open:
      self.texts.append((self._open[-1], text.strip()))

  def of(self, name):
    return [attributes for tag, attributes in self.tags if tag == name]

  @property
  def text(self):
    return ' '.join(' '.join(text for _, text in self.texts).split())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(workdir, results, the page after the first task, the page at the end)."""
  workdir = tmp_path_factory.mktemp('report')
  digits = data.load('digits')
  # The classes in their own order, so that the names that could do harm are those of the first two tasks.
  dataset = dataclasses.replace(digits, class_names=NAMES, class_order=tuple(range(10)))
  train.run(with_values(SHORT, {'stop_after_task': 1}), workdir, dataset)
  early = (workdir / 'report.html').read_text()
  results = train.run(SHORT, workdir, dataset)
  return workdir, results, early, (workdir / 'report.html').read_text()


@pytest.fixture(scope='module')
def collection():
  """The page of all committed runs, with their upper bounds."""
  paths = sorted((ROOT / 'experiments' / 'results').glob('*.json'))
  return pages.page(report._with_omega([pages.Run(Results.load(path)) for path in paths]))


def test_it_is_refreshed_after_each_task(run):
  _, results, early, late = run
  assert '1 of 2 tasks learned so far' in Page(early).text and 'Synthetic images' not in early
  assert 'All 2 tasks are learned.' in Page(late).text
  for text, accuracy in ((early, results.accuracy_after_task[0]), (late, results.final_accuracy)):
    assert f'final accuracy A_N % {accuracy:.1f} ' in Page(text).text


@pytest.mark.parametrize('which', ['run', 'collection'])
def test_it_is_whole_in_itself_and_can_be_read_aloud(which, run, collection):
  text = run[3] if which == 'run' else collection
  page = Page(text)
  assert text.startswith('<!doctype html>') and page.of('html') == [{'lang': 'en'}]
  assert page.of('script') == page.of('link') == page.of('iframe') == []
  assert not re.search(r'url\(|@import|javascript:', text)
  for tag, attributes in page.tags:
    assert not any(name.startswith('on') for name in attributes), attributes
    assert attributes.get('src', 'data:').startswith('data:') and 'href' not in attributes, (tag, attributes)
  [policy] = [meta['content'] for meta in page.of('meta') if 'http-equiv' in meta]
  assert policy.startswith("default-src 'none'")
  assert all(image['alt'] for image in page.of('img'))
  drawn = [svg for svg in page.of('svg') if svg.get('aria-hidden') != 'true']
  assert drawn and all(svg['role'] == 'img' and svg['aria-label'] for svg in drawn)
  levels = [level for level, _ in page.headings]
  assert levels[0] == 1 and levels.count(1) == 1 and all(title.strip() for _, title in page.headings)
  assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_names_are_text_whatever_is_in_them(run):
  page = Page(run[3])
  first_task = [text for tag, text in page.texts if tag == 'li']
  assert f'{NAMES[0]}, {NAMES[1]}' in first_task and f'{NAMES[2]}, {NAMES[3]}' in first_task
  assert run[1].class_names == list(NAMES[:4])


def test_the_synthetic_images_are_there_with_name_and_confidence(run):
  from PIL import Image

  workdir, _, _, text = run
  [synthetic] = load_synthetic(workdir)
  images = Page(text).of('img')
  assert len(images) == len(synthetic.images) == 40
  for image, pixels, name, confidence in zip(
      images, synthetic.images, synthetic.names, synthetic.confidences, strict=True
  ):
    assert image['alt'] == f'Synthetic image: {name}, confidence {round(100 * confidence)} %' and name in NAMES[:2]
    shown = Image.open(io.BytesIO(base64.b64decode(image['src'].removeprefix('data:image/png;base64,'))))
    np.testing.assert_array_equal(np.asarray(shown), pixels.repeat(3, axis=-1))
  assert f'Before task 2: mean confidence {100 * run[1].synthetic_confidence[0]:.0f} %' in Page(text).text


def test_large_images_are_bounded():
  # 40 images of ImageNet's size would be 6 MB of pixels.
  noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
  assert len(pages._data_uri(noise)) < 30_000


def test_the_flags_are_those_that_replay_the_run(run, tmp_path):
  workdir, results, _, text = run
  flags = re.search(r'<pre class="flags"><code>(.*?)</code></pre>', text, re.DOTALL).group(1)
  (tmp_path / 'flags.txt').write_text(html.unescape(re.sub('</?b>', '', flags)))
  told, first = config.from_flagfile(tmp_path / 'flags.txt'), config.from_flagfile(workdir / 'flags.txt')
  assert dataclasses.replace(told, workdir=first.workdir) == first
  assert '<b>--inversion_steps=3</b>' in flags and '\n--momentum=0.9\n' in flags
  assert f'jax=={results.versions["jax"]} ' in text


def test_the_classes_of_each_task_are_listed(run):
  results, names = run[1], run[1].class_names
  most = len(names) - 2
  most_first = dataclasses.replace(results, num_tasks=3, config={**results.config, 'first_task_classes': most})
  for shown, sizes in ((results, (len(names) // 2,) * 2), (most_first, (most, 1, 1))):
    listed = re.search('The classes of each task</summary>\n<ol>(.*?)</ol>', pages.page([pages.Run(shown)]))[1]
    listed = [html.unescape(item) for item in re.findall('<li>(.*?)</li>', listed)]
    ends = itertools.accumulate(sizes, initial=0)
    assert listed == [', '.join(names[start:end]) for start, end in itertools.pairwise(ends)]
  assert f'{len(names)} classes in 3 tasks, the first of {most}, resnet8' in pages.page([pages.Run(most_first)])


def test_the_time_is_split(run):
  _, results, *_ = run
  seconds = {**results.seconds, 'inversion': 2.0, 'train': 5.0, 'eval': 0.5, 'compile': 1.5, 'total': 10.0}
  # One second of ten is the rest.
  text = Page(pages.page([pages.Run(dataclasses.replace(results, seconds=seconds))])).text
  assert 'abd 2.0 s, 20 % 5.0 s, 50 % 0.5 s, 5 % 1.5 s, 15 % 1.0 s, 10 % 10.0 s' in text


def test_a_rate_of_another_name_is_shown_under_it(run):
  results = dataclasses.replace(run[1], steps_per_second={'train': 2.0, 'dreaming': 5.0})
  assert 'dreaming' in Page(pages.page([pages.Run(results)])).text


def test_several_runs_are_compared_over_seeds_and_beside_the_published():
  of_seed = [
      dataclasses.replace(
          full_cifar100('abd', seed, 5, accuracy_after_task=[90.0, 70.0, 60.0, 50.0, final]), final_accuracy=final
      )
      for seed, final in ((0, 40.0), (1, 44.0))
  ]
  text = pages.page([pages.Run(one) for one in of_seed])
  page = Page(text)
  head = [content for tag, content in page.texts if tag == 'th']
  assert head[3:5] == ['final accuracy A_N %', 'published final accuracy A_N %']
  # Mean and population standard deviation of 40 and 44; the paper's Table 1.
  assert ' 42.0 ± 2.0 43.9 ± 0.9 ' in page.text
  assert 'abd: 5, 42 ± 2' in page.text and 'abd, published: 5, 43.9 ± 0.9' in page.text
  assert text.count('<path class="band') >= 2 and 'abd on cifar100, seed 1' in page.text


def test_rows_of_one_method_are_told_apart(collection):
  titles = [title for level, title in Page(collection).headings if level == 3]
  assert 'abd on digits, seed 0' in titles and 'abd on cifar100 (100 classes in 10 tasks, resnet32), seed 0' in titles
  assert 'abd (--bn_double_update=true, --generator_init=warm, --finetune_classes=all) on cifar100, seed 2' in titles
  runs = [title for title in titles if ', seed ' in title]
  assert len(runs) == len(set(runs)) == len(list((ROOT / 'experiments' / 'results').glob('*.json')))


# Diagnostics


def with_diagnostics(run, workdir, text):
  (workdir / 'diagnostics.json').write_text(text)
  return Page(pages.page([pages.Run(run[1], workdir)]))


def test_diagnostics_are_shown(run, tmp_path):
  page = with_diagnostics(run, tmp_path, json.dumps(DIAGNOSTICS))
  for said in (
      'After task 2. Of 70 old real, 72 new real images', 'MID 9.12 4.50 – MID before the task 7 – –',
      'squared MMD 0.250 0.0625 0.500',
      '3 features without variance', 'Expected calibration error 3.4 points', f'{NAMES[0]} 87.5 98.0 11.1',
      'R&D 12.5 – –', '0.500', 'synthetic images nearer than those, % 6.25', 'accuracy: 50, 25 accuracy: 90, 100',
  ):
    assert said in page.text, said
  cells = [text for tag, text in page.texts if tag == 'td']
  assert ' '.join(cells).count('75 25 0 100') == 1
  assert [svg['aria-label'] for svg in page.of('svg') if 't-SNE' in svg.get('aria-label', '')]


@pytest.mark.parametrize('text', ['{}', '{"mid": null, "tsne": {}, "calibration": {"bins": []}}'])
def test_what_diagnostics_lack_is_left_out(run, tmp_path, text):
  page = with_diagnostics(run, tmp_path, text)
  assert 'Diagnostics' in page.text and 'cannot be shown' not in page.text and 'MID' not in page.text
  (tmp_path / 'diagnostics.json').unlink()
  assert 'Diagnostics' not in Page(pages.page([pages.Run(run[1], tmp_path)])).text


@pytest.mark.parametrize('text', [
    '{"mid": ', '[1]', '{"calibration": {"bins": 3}}', '{"tsne": {"real_old": [1]}}',
    pytest.param(100_000 * '[', id='nested'),
])
def test_diagnostics_that_are_none_are_said_to_be(run, tmp_path, text):
  page = with_diagnostics(run, tmp_path, text)
  assert 'diagnostics.json cannot be shown' in page.text and 'final accuracy' in page.text


# Charts


def test_points_stand_where_their_figures_say():
  # 460x290 less 46, 20, 10 and 42 of margin: 394 pixels of x from 46, 238 of y up from 248.
  series = charts.Series('a', (1, 2, 3), (0, 50, 100), spreads=(0, 10, 0))
  chart = charts.line_chart([series], 'title', x_limits=(1, 3), y_limits=(0, 100), x_ticks=(1, 3))
  [curve] = chart.curves
  assert curve.path == 'M46 248L243 129L440 10'
  # Ten of a hundred are 23.8 pixels.
  assert curve.band == 'M46 248L243 105.2L440 10L440 10L243 152.8L46 248Z'
  assert chart.x_ticks == ((46, '1'), (440, '3'))
  assert [text for _, text in chart.y_ticks] == ['0', '20', '40', '60', '80', '100']
  assert [mark.said for mark in curve.marks] == ['a: 1, 0 ± 0', 'a: 2, 50 ± 10', 'a: 3, 100 ± 0']


def test_figures_that_are_not_finite_are_left_out():
  chart = charts.line_chart([charts.Series('a', (1, 2, 3), (1.0, float('nan'), None))], 'title')
  assert [mark.said for mark in chart.curves[0].marks] == ['a: 1, 1']
  assert charts.line_chart([charts.Series('a', (1,), (float('inf'),))], 'title') is None


@pytest.mark.parametrize('ys, drawn', [
    ((1.7e308, -1.7e308, 1.0, 2.0), 2),  # whose difference no float holds
    ((1e300, -1e300), 2),
    ((0.0, 5e-324), 2),  # a fifth of which is 0
    ((1.0, 1.0 + 2.3e-16), 2),
    ((10**400, 3), 1),
])
def test_figures_of_any_size_make_a_chart(ys, drawn):
  chart = charts.line_chart([charts.Series('a', tuple(range(len(ys))), ys)], 'title')
  assert len(chart.curves[0].marks) == drawn and 1 <= len(chart.y_ticks) <= 7
  assert all(10 <= y <= 248 for y, _ in chart.y_ticks)


def test_a_long_line_is_thinned_to_means_of_neighbours():
  # 600 points to 300: the first is the mean of steps 0 and 1.
  series = charts._thinned(charts.Series('a', tuple(range(600)), tuple(range(600)), marks=False))
  assert len(series.xs) == 300 and series.xs[:2] == series.ys[:2] == (0.5, 2.5)


def test_ticks_are_round():
  assert charts.ticks(0, 100, 5) == (0, 20, 40, 60, 80, 100)
  assert charts.ticks(0.687, 2.1, 5) == (1.0, 1.5, 2.0)
  assert charts.ticks(3, 3) == (3,)


def test_heat_can_be_read_on_every_cell():
  def luminance(colour):
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  [row] = charts.heat_map([[*range(101), None, float('nan')]], 100)
  assert row[-2:] == [None, None] and row[0][1] == '#00224e' and row[100][1] == '#fee838' and row[42][0] == '42'
  for _, background, ink in row[:101]:  # WCAG's contrast of 4.5 to 1
    dark, light = sorted((luminance(background), 1.0 if ink == '#fff' else 0.0))
    assert (light + 0.05) / (dark + 0.05) >= 4.5, background


# That it cannot be written


def test_a_page_that_cannot_be_written_is_said_and_stops_nothing(run, tmp_path, monkeypatch):
  said = []
  (tmp_path / 'report.html').mkdir()
  pages.save_run(tmp_path, run[1], said.append)
  monkeypatch.setattr(pages, 'page', lambda runs: {}['a mistake of ours'])
  pages.save_run(tmp_path, run[1], said.append)
  assert said[0].startswith('No report.html: ') and "KeyError: 'a mistake of ours'" in said[1]


def test_the_command_writes_it_and_says_where_it_cannot(run, tmp_path, capsys):
  assert report.main([str(run[0]), f'--html={tmp_path / "all.html"}']) == 0
  assert Page((tmp_path / 'all.html').read_text()).headings == Page(run[3]).headings
  assert report.main([str(run[0]), f'--html={tmp_path / "nowhere" / "all.html"}']) == 2
  assert 'all.html cannot be written: No such file or directory.' in capsys.readouterr().err


# In a browser

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
# The pages have no script: one around them, in frames of several widths, says how they turned out.
_MEASURE = """<!doctype html><body>%s<pre id="said"></pre><script>
window.onload = () => {
  document.getElementById('said').textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(frame => {
    const shown = frame.contentDocument, style = getComputedStyle(shown.body);
    return {
      frame: frame.clientWidth, page: shown.documentElement.scrollWidth, height: shown.documentElement.scrollHeight,
      paper: style.backgroundColor, ink: style.color, broken: [...shown.images].filter(i => !i.naturalWidth).length,
      drawn: [...shown.querySelectorAll('main > section svg[role=img]')].filter(s => s.clientHeight > 50).length,
    };
  }));
};
</script>"""


def browse(folder, *options):
  command = [
      BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--hide-scrollbars',
      '--disable-background-networking', f'--user-data-dir={folder / "profile"}', '--virtual-time-budget=5000',
      *options,
  ]
  return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120).stdout


def measured(folder, texts, *options):
  """What `_MEASURE` says of pages on a phone and on a desk."""
  frames = [
      f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(text)}"></iframe>'
      for text in texts for width in (390, 1200)
  ]
  (folder / 'around.html').write_text(_MEASURE % ''.join(frames))
  shown = browse(folder, *options, '--dump-dom', (folder / 'around.html').as_uri())
  return json.loads(html.unescape(re.search('<pre id="said">(.*?)</pre>', shown, re.DOTALL).group(1)))


@pytest.fixture
def texts(run, collection, tmp_path):
  if BROWSER is None:
    pytest.skip('no Chromium or Chrome on this machine: how the page looks there is not checked')
  (tmp_path / 'diagnostics.json').write_text(json.dumps(DIAGNOSTICS))
  for name in ('metrics.jsonl', 'synthetic_task2.npz'):
    shutil.copy(run[0] / name, tmp_path)
  matrix = [[50.0] * (n + 1) + [None] * (19 - n) for n in range(20)]  # it has to scroll by itself
  twenty = full_cifar100('abd', 0, 20, accuracy_matrix=matrix, accuracy_matrix_local=matrix)
  return [pages.page([pages.Run(run[1], tmp_path)]), collection, pages.page([pages.Run(twenty)])]


def test_it_fits_a_phone_and_a_desk_light_and_dark(texts, tmp_path):
  light = measured(tmp_path, texts)
  assert [each['frame'] for each in light] == [390, 1200] * 3
  for each in light:
    assert each['page'] == each['frame'] and each['height'] > 1500 and not each['broken'] and each['drawn'], each
    assert (each['paper'], each['ink']) == ('rgb(255, 255, 255)', 'rgb(27, 31, 36)')
  dark = measured(tmp_path, texts[:1], '--blink-settings=preferredColorScheme=0')
  assert {(each['paper'], each['ink']) for each in dark} == {('rgb(20, 23, 27)', 'rgb(231, 234, 238)')}


def test_it_prints_on_light_paper_with_all_that_is_folded(texts, tmp_path):
  (tmp_path / 'page.html').write_text(texts[1])
  dark = '--blink-settings=preferredColorScheme=0'
  browse(tmp_path, dark, f'--print-to-pdf={tmp_path / "page.pdf"}', (tmp_path / 'page.html').as_uri())
  printed = (tmp_path / 'page.pdf').read_bytes()
  # The comparison alone is four pages or so; each of the two dozen runs below it, unfolded, is one more at least.
  assert printed.startswith(b'%PDF') and len(re.findall(rb'/Type\s*/Page\b', printed)) > 24
