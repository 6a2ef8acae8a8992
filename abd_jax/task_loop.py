"""One run: a task after the other, a phase after the other, a call of the device after the other."""

import dataclasses
import functools
import itertools
import math
import time

import jax
import numpy as np

from abd_jax import ahead, processes, states
from abd_jax import metrics as metrics_lib
from abd_jax import results as results_lib
from abd_jax.addresses import Address
from abd_jax.calls import Call, check_finite, means
from abd_jax.data import coreset
from abd_jax.data.feed import feed
from abd_jax.data.streams import Streams
from abd_jax.errors import AnotherRun, NotFinite
from abd_jax.methods import METHODS
from abd_jax.methods.interface import OWN, Learned, Reads
from abd_jax.parallel import put, return_freed_memory
from abd_jax.pictures import Synthetic
from abd_jax.programs import EVAL_BATCH, INVERSION_EPOCH, in_batches
from abd_jax.record import Record
from abd_jax.report import pages
from abd_jax.stopping import Preempted

# The device may lag so many calls behind the loop: enough to keep it busy, little to wait for when asked to stop.
CALLS_IN_FLIGHT = 2

# After so many other draws it was not the draws.
_MOST_ROLLBACKS = 3


class Run:
  """One run in this process. The states are replaced, never changed; the record is what changes."""

  def __init__(self, config, workdir, dataset, tasks, programs, checkpoints, log, stop, progress):
    self._config, self._workdir, self._dataset, self._tasks = config, workdir, dataset, tasks
    self._programs = programs
    self._checkpoints, self._log, self._stop, self._progress = checkpoints, log, stop, progress
    self._method = METHODS[config.method]
    self._streams = Streams(tasks, self._method, config.memory, config.seed)
    self._coreset = coreset.empty(self._streams.memory, tasks.image_shape) if self._method.coreset else None
    self._record = Record(data=dataset.digest)
    self._student = self._teacher = self._before = self._generator = None
    self._kept = None  # the place of the last checkpoint
    self._counted_at = time.monotonic()

  def execute(self):
    self._restore()
    last = self._config.stop_after_task or self._config.num_tasks
    if self._record.task >= last and processes.tell((self._workdir / 'results.json').exists()):
      return results_lib.Results.load(self._workdir) if processes.is_first() else self._results()
    calls = itertools.chain(self._calls_to_learn(last), ahead.to_evaluate(self._tasks, self._programs))
    with ahead.Ahead(self._config, calls if self._record.task < last else ()) as self._ahead:
      while self._record.task < last:
        task = self._record.task
        self._learn_task(task)
        self._evaluate(task)
        self._teacher = None
        if self._config.inversion.generator_init == 'fresh' or self._config.inversion.inversion == 'images':
          self._generator = None  # images above all: they are the task's alone
        if processes.is_first():
          pages.save_run(self._workdir, self._results(), self._progress.say)
      self._save()
      self._checkpoints.wait()
      results = self._results()
      processes.on_first(lambda: results.save(self._workdir / 'results.json'))
    return results

  def lesson(self, task, student):
    """The student with one more task learned."""
    self._record.task = task
    self._student = student and put(jax.tree.map(np.array, student))  # a copy: a step takes its memory
    self._restore()
    with ahead.Ahead(self._config, self._calls_to_learn(task + 1)) as self._ahead:
      self._learn_task(task)
    return self._student

  def _calls_to_learn(self, last):
    """What is left of this task calls, and one more, if there is one before task number `last`, as all others do."""
    record = self._record
    plans = [(record.task, record.phase == record.step == 0, self._plan(record.task)[record.phase :])]
    plans += [(task, True, self._plan(task)) for task in range(record.task + 1, last)[:1]]
    return ahead.to_learn(self._config, self._dataset, self._tasks, self._programs, plans)

  def _learn_task(self, task):
    """All phases of a task, from where the record stands; taken back where that went astray, if the run may."""
    while True:
      try:
        return self._learn_phases(task)
      except NotFinite as error:
        self._roll_back(error)

  def _learn_phases(self, task):
    record = self._record
    if record.phase == record.step == 0:
      self._begin(task)
      self._save()  # the evaluation of the task before with it: a save of its own would only be waited for
      self._stop_if_asked()
    plan = self._plan(task)
    while record.phase < len(plan):
      address, phase = plan[record.phase]
      if address == Address.INVERSION:
        self._invert(task)
      elif address == Address.CHOOSING:
        self._choose(task)
      elif address == Address.CLOSING:
        self._close(task)
      else:
        self._learn(task, address, phase)
      record.phase, record.step = record.phase + 1, 0
      self._save()
      self._stop_if_asked()

  def _plan(self, task):
    """[(address of its randomness, phase)] of a task; inversion, choice of the coreset and closing have no phase."""
    phases = self._method.phases(task)
    plan = [(Address.LEARN + i, phase) for i, phase in enumerate(phases)]
    if self._method.coreset:  # chosen when all is learned, but before a phase that reads it alone
      at = next((i for i, phase in enumerate(phases) if phase.reads is Reads.CORESET), len(phases))
      plan.insert(at, (Address.CHOOSING, None))
    if self._method.closes:
      plan.append((Address.CLOSING, None))
    return ([(Address.INVERSION, None)] if task and self._method.dreams else []) + plan

  def _place(self, task, address, step=0):
    """i32[4]: where the keys of a step are found."""
    return np.array([self._config.seed, task, self._redrawn(address), step], np.int32)

  def _redrawn(self, address):
    """The address of other draws after each rollback."""
    return int(address) + 2 * Address.LEARN * self._record.rollbacks

  # What a task starts with.

  def _begin(self, task):
    """Teacher, generator and student as the task finds them; a second call changes nothing."""
    if task and self._programs.renew:
      self._student = self._programs.renew(self._student, self._place(task, Address.STUDENT_INIT))
    if task and self._method.opens:
      self._student = self._student.replace(params=self._method.opens(self._student.params, self._tasks.past(task)))
    if task and self._method.teacher:
      self._teacher = self._programs.freeze(self._student)
    if task and self._method.dreams and self._generator is None:
      self._generator = self._programs.init_generator(self._place(task, Address.GENERATOR_INIT))
    if task == 0 or self._method.cumulative:
      self._student = self._programs.init_student(self._place(task, Address.STUDENT_INIT))

  # The phases.

  def _invert(self, task):
    """Trains the generator against the teacher, or images themselves, and shows what comes of it."""
    past = self._tasks.past(task)

    def advance(step, count):
      place = self._place(task, Address.INVERSION, step)
      self._generator, metrics = self._programs.invert(self._generator, place, count, self._teacher, past)
      return metrics

    steps = self._programs.inversion_steps
    self._loop(task, 'inversion', steps, INVERSION_EPOCH, self._programs.invert_steps, advance)
    images, labels, confidences = self._programs.preview(
        self._generator, self._teacher, past, self._place(task, Address.PREVIEW)
    )
    self._record.synthetic_confidence.append(float(np.mean(confidences)))
    if not processes.is_first():
      return
    names = tuple(self._dataset.class_names[self._tasks.order[label]] for label in np.asarray(labels))
    try:
      Synthetic(task + 1, np.asarray(images), names, np.asarray(confidences)).save(self._workdir)
    except (ImportError, OSError) as error:
      self._progress.say(f'No picture of the synthetic images: {error}.')

  def _learn(self, task, address, phase):
    """One of the method's phases on the images that it reads."""
    settings = self._config.optimisation
    schedule = phase.schedule(settings)
    images, labels = self._streams.load(task, phase.reads, self._coreset)
    batches = feed(
        images, labels, self._streams.capacity(phase.reads), schedule.epochs,
        crop=self._config.augmentation.resized_crop,
        batch_size=self._streams.batch_size(phase, settings.batch_size, jax.device_count()),
        steps_per_call=self._programs.learn_steps,
        address=(self._config.seed, task, self._redrawn(address)),
    )
    seen = self._tasks.seen(task)
    past = 0 if self._method.cumulative else self._tasks.past(task)
    if self._record.step == 0:
      self._student = self._student if phase.continues else self._programs.restart(self._student)
      self._before = self._programs.freeze(self._student) if phase.looks_back else None
    teacher = self._teacher if phase.needs_teacher else None

    def advance(step, count):
      epoch, within = divmod(step, batches.steps_per_epoch)
      if within == 0 and self._programs.begin_epoch:
        self._student = self._student.replace(tally=self._programs.begin_epoch(self._student.tally))
      self._student, metrics = self._programs.learn[phase](
          self._student, self._place(task, address, step), count, teacher, self._generator if phase.dreams else None,
          *batches.at(step, count), past, seen, schedule.rate(epoch), self._before,
      )
      return metrics

    total = schedule.epochs * batches.steps_per_epoch
    self._loop(task, phase.name, total, batches.steps_per_epoch, self._programs.learn_steps, advance)
    self._before = None

  def _choose(self, task):
    """The coreset that is kept from this task on."""
    with self._record.timed('train'):
      features = functools.partial(in_batches, self._programs.features, self._student.variables)
      self._coreset = self._streams.choose(task, self._coreset, features)

  def _close(self, task):
    """What the method makes of the student when its phases are over."""
    with self._record.timed('train'):
      images, labels = self._streams.load(task, Reads.NEW, None)
      features = functools.partial(in_batches, self._programs.features)
      learned = Learned(
          labels, features(self._student.variables, images), past=self._tasks.past(task), seen=self._tasks.seen(task)
      )
      if self._teacher is not None:
        calls = [
            self._programs.synthetic_features(
                self._student, self._teacher, self._generator, self._place(task, Address.CLOSING, i)
            )
            for i in range(math.ceil(len(labels) / EVAL_BATCH))
        ]
        by_student, by_teacher = (np.concatenate(of_calls) for of_calls in zip(*jax.device_get(calls), strict=True))
        learned = dataclasses.replace(
            learned, teacher_features=features(self._teacher.variables, images), synthetic_features=by_student,
            synthetic_teacher_features=by_teacher,
        )
      params = self._method.closes(jax.device_get(self._student.params), learned)
      self._student = self._student.replace(params=put(params))

  def _loop(self, task, name, total, epoch_steps, steps_per_call, advance):
    """Steps to the end of a phase, a call never beyond an epoch's; saves when it is time, stops when asked."""
    record = self._record
    kind = 'inversion' if name == 'inversion' else 'train'
    calls, epochs = [], []  # since the last epoch's end; epochs that have ended, (place, number, calls)
    self._progress.begin(task + 1, name, record.phase + 1, len(self._plan(task)), record.step, total)

    def tell(place, epoch, of_epoch):
      of_epoch = jax.device_get(of_epoch)
      check_finite(of_epoch, task, name)
      figures, steps = means(of_epoch), sum(call.count for call in of_epoch)
      self._log.write(place, task=task + 1, phase=name, epoch=epoch, steps=steps, **figures)
      self._progress.epoch(of_epoch[-1].step + of_epoch[-1].count, figures)
      self._ahead.check()

    with record.timed(kind) as clock:
      while record.step < total:
        count = min(steps_per_call, epoch_steps - record.step % epoch_steps, total - record.step)
        calls.append(Call(advance(record.step, count), count, record.step))
        if len(calls) >= CALLS_IN_FLIGHT:
          oldest = calls[-CALLS_IN_FLIGHT]
          jax.block_until_ready(oldest.metrics)
          check_finite([oldest], task, name)
        # Asked for once there is a call behind it, the figures of an epoch do not keep the device waiting.
        while epochs:
          tell(*epochs.pop(0))
        record.step += count
        record.steps[kind] += count
        self._progress.step(record.step)
        if record.step % epoch_steps == 0 or record.step == total:
          epochs.append((record.place, -(-record.step // epoch_steps), calls))
          calls = []
        # Asked of all processes at once: each has a clock of its own, and to save they all meet.
        saves = processes.on_any(self._stop.received or self._checkpoints.due)
        while epochs and (saves or record.step == total):
          tell(*epochs.pop(0))
        if saves:
          clock()
          check_finite(calls, task, name)
          self._save()
          self._stop_if_asked()

  def _stop_if_asked(self):
    """Ends the run, saved as it is, when SIGTERM has come."""
    if processes.on_any(self._stop.received):
      self._checkpoints.wait()
      self._progress.say('Told to stop: saved. The same command goes on from here.')
      raise Preempted

  def _evaluate(self, task):
    """Adds a row to the accuracy matrices."""
    record = self._record
    logits, labels = [], []
    with record.timed('eval'):
      for earlier in range(task + 1):
        images, its_labels = self._tasks.test(earlier)
        logits.append(in_batches(self._programs.evaluate, self._student.variables, images))
        labels.append(its_labels)
    classes = [self._tasks.classes(earlier) for earlier in range(task + 1)]
    row, local_row, accuracy = metrics_lib.accuracies_after_task(logits, labels, classes, self._config.top_k)
    record.accuracy_matrix.append(row)
    record.accuracy_matrix_local.append(local_row)
    record.accuracy_after_task.append(accuracy)
    # The place after the evaluation, so that a run killed before it is saved writes this line again, and once.
    return_freed_memory()  # the task's images and all that was made of them
    record.end_task(results_lib.peak_memory_bytes(), results_lib.memory_bytes())
    self._log.write(record.place, task=task + 1, accuracy=accuracy, accuracy_by_task=row)
    by_task = ' '.join(f'{value:.1f}' for value in row)
    self._progress.say(
        f'{self._config.method} seed {self._config.seed}  task {task + 1}/{self._config.num_tasks}'
        f'  accuracy {accuracy:.2f} %  by task {by_task}'
    )

  # Keeping.

  def _states(self):
    held = {
        'student': self._student,
        'teacher': self._teacher,
        'before': self._before,
        'generator': self._generator,
        'coreset': self._coreset,
    }
    return {name: state for name, state in held.items() if state is not None}

  def _save(self):
    self._record.holds = sorted(self._states())
    self._record.peak_memory_bytes = max(self._record.peak_memory_bytes, results_lib.peak_memory_bytes())
    self._count_time()
    try:
      self._checkpoints.save(self._states(), dataclasses.asdict(self._record))
    except NotFinite as error:
      raise NotFinite(f'Task {self._record.task + 1}, step {self._record.step}: {error}') from None
    self._kept = self._record.place

  def _roll_back(self, error):
    """Back to the last checkpoint, for another draw.

    Raises:
      NotFinite: the run may not, or has done so too often.
    """
    rollbacks = self._record.rollbacks + 1
    self._checkpoints.wait()
    if self._config.on_nan == 'stop' or rollbacks > _MOST_ROLLBACKS:
      or_else = ', or --on_nan=rollback' if self._config.on_nan == 'stop' else ''
      task, phase, step = self._kept
      raise NotFinite(
          f'{error} The last state before it, {step} steps into phase {phase + 1} of task {task + 1}, is kept in'
          f' {self._workdir / "checkpoints"}. A lower --learning_rate or --generator_learning_rate may help{or_else}.'
      ) from None
    self._progress.say(f'{error} Back to the last checkpoint, rollback {rollbacks} of {_MOST_ROLLBACKS}.')
    self._restore()
    self._record.rollbacks = rollbacks
    self._log.write(self._record.place, rollback=rollbacks, reason=str(error))

  def _count_time(self):
    now = time.monotonic()
    self._record.seconds['total'] += now - self._counted_at
    self._counted_at = now

  def _restore(self):
    """Goes to the latest checkpoint, where there is one.

    Raises:
      AnotherRun: it is of a run on other data.
    """
    place = self._place(0, 0)
    shapes = {'student': self._programs.init_student.shapes(place)}
    shapes['teacher'] = shapes['before'] = states.TeacherState(shapes['student'].params, shapes['student'].batch_stats)
    shapes['coreset'] = self._coreset
    if self._method.dreams:
      shapes['generator'] = self._programs.init_generator.shapes(place)
    ours = self._record.data

    def like(record):
      record = Record.read(record)
      if record.data not in ('', ours):  # an earlier version did not say
        raise AnotherRun(
            f'{self._workdir} holds a run that began with another {self._dataset.name}: choose another --workdir, or'
            ' delete it.'
        )
      return {name: shapes[name] for name in record.holds}

    saved = self._checkpoints.restore(like)
    if saved is not None:
      self._record = Record.read(saved[0])
      self._coreset = saved[1].pop('coreset', None)  # which stays with the host
      restored = put(saved[1])
      self._student = restored['student']
      self._teacher, self._before, self._generator = map(restored.get, ('teacher', 'before', 'generator'))
      task, phase, step = self._kept = self._record.place
      if task < (self._config.stop_after_task or self._config.num_tasks):
        self._progress.say(f'Resuming after {task} tasks, {phase} phases and {step} steps.')
      else:
        self._progress.say('This run is finished: nothing is trained, its figures are those kept.')
    self._log.rewind(self._record.place)

  def _results(self):
    """What the tasks so far have come to."""
    self._count_time()
    record = self._record
    passing = {OWN} if self._method.renews_own else set()
    network = {name: leaf for name, leaf in self._student.params.items() if name not in passing}
    kept = [network] + ([self._generator.params] if self._generator else [])
    held = {
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(kept)),
        'images': len(self._coreset) if self._coreset else 0,
    }
    if self._method.cumulative:
      held['images'] = int(sum(self._tasks.train_sizes()[: record.task - 1]))
    return results_lib.make_results(self._config, self._dataset, self._tasks, record, held)
