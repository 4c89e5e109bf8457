// Plays the tunes of the page, one at a time, and lights the notes that sound.
"use strict";
const AHEAD = 1.5; // seconds that are scheduled ahead: a page in the background is woken once a second
const LOUD = 0.22; // so that a chord of four stays below full scale
const RING = 3, RELEASE = 0.06, PARTIALS = 14, PLUCKED = 0.21; // seconds; the string is that of rekindle.music.sound
const data = JSON.parse(document.getElementById("data").textContent);
const strings = new Map(); // of each pitch, as an AudioBuffer
const tempo = document.getElementById("tempo");
let context = null, timer = 0, now = null; // now: the tune that plays

// --- the sound ---------------------------------------------------------------------------------------------------

function string(pitch) {
  if (!strings.has(pitch)) {
    const rate = context.sampleRate, hertz = 440 * 2 ** ((pitch - 69) / 12), ring = 1.4 * (220 / hertz) ** 0.4;
    const buffer = context.createBuffer(1, RING * rate, rate), out = buffer.getChannelData(0);
    for (let k = 1; k <= PARTIALS && k * hertz < 0.45 * rate; k++) {
      // Each sample follows from the two before it: a sine that dies away.
      const fades = Math.exp(-(k ** 0.7) / ring / rate), turn = (2 * Math.PI * k * hertz) / rate;
      const a = 2 * fades * Math.cos(turn), b = -fades * fades;
      let before = 0, here = (Math.abs(Math.sin(Math.PI * k * PLUCKED)) / k ** 1.6) * fades * Math.sin(turn);
      for (let i = 1; i < out.length; i++) {
        out[i] += here;
        [before, here] = [here, a * here + b * before];
      }
    }
    strings.set(pitch, buffer);
  }
  return strings.get(pitch);
}

function strike(pitch, start, length) {
  const source = context.createBufferSource(), gain = context.createGain();
  const end = start + Math.min(length, RING - RELEASE);
  source.buffer = string(pitch);
  gain.gain.setValueAtTime(0, start);
  gain.gain.linearRampToValueAtTime(LOUD, start + 0.004);
  gain.gain.setValueAtTime(LOUD, end);
  gain.gain.linearRampToValueAtTime(0, end + RELEASE);
  source.connect(gain).connect(context.destination);
  source.start(start);
  source.stop(end + RELEASE);
  return { source, gain, start, end };
}

function hush({ source, gain, start, end }) {
  const time = context.currentTime;
  if (time < start) return gain.disconnect();
  if (time >= end) return; // it fades already
  gain.gain.cancelScheduledValues(time);
  gain.gain.setTargetAtTime(0, time, 0.012);
  source.stop(time + 0.08);
}

// --- one tune ----------------------------------------------------------------------------------------------------

class Tune {
  constructor(article, { sounds, seconds }) {
    Object.assign(this, { article, sounds, seconds, place: 0, next: 0, struck: [], lit: new Set() });
    [this.button, this.bar, this.time] = article.querySelector(".player").children;
    this.name = this.button.getAttribute("aria-label").replace(/^Play /, "");
    this.notes = new Map();
    for (const note of article.querySelectorAll("[data-note]")) {
      const number = Number(note.dataset.note);
      this.notes.set(number, [...(this.notes.get(number) ?? []), note]);
    }
    this.button.onclick = () => (now === this ? stop() : play(this));
    this.bar.oninput = () => this.go((this.bar.value / 1000) * seconds);
    this.show();
    article.querySelector(".player").hidden = false;
  }

  // Seconds of the tune, at its own tempo, that have been heard.
  heard() {
    const late = context.outputLatency || 0;
    return Math.max(this.from, this.from + (context.currentTime - late - this.began) * this.speed);
  }

  begin() {
    this.speed = tempo.value / 100;
    this.from = this.place;
    this.began = context.currentTime + 0.08;
    this.next = this.sounds.findIndex(([start]) => start >= this.from - 0.001);
    if (this.next < 0) this.next = this.sounds.length;
  }

  go(place) {
    this.place = Math.min(Math.max(place, 0), this.seconds);
    if (now === this) {
      this.struck.splice(0).forEach(hush);
      this.begin();
    }
    this.show();
  }

  schedule() {
    for (; this.next < this.sounds.length; this.next++) {
      const [start, length, pitch] = this.sounds[this.next];
      const at = this.began + (start - this.from) / this.speed;
      if (at > context.currentTime + AHEAD) break;
      this.struck.push(strike(pitch, Math.max(at, context.currentTime), length / this.speed));
    }
    this.struck = this.struck.filter(({ end }) => end + RELEASE > context.currentTime);
  }

  show() {
    const sounding = now !== this ? [] : this.sounds.filter(([start, length]) => start <= this.place && this.place < start + length);
    const lit = new Set(sounding.flatMap(([, , , written]) => this.notes.get(written) ?? []));
    for (const note of this.lit) if (!lit.has(note)) note.classList.remove("sounding");
    for (const note of lit) note.classList.add("sounding");
    this.lit = lit;
    this.bar.value = (1000 * this.place) / this.seconds;
    const said = `${clock(this.place)} / ${clock(this.seconds)}`;
    if (this.time.textContent !== said) {
      this.time.textContent = said;
      this.bar.setAttribute("aria-valuetext", said.replace("/", "of"));
    }
  }

  mark(playing) {
    this.article.classList.toggle("playing", playing);
    this.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${this.name}`);
  }
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function play(tune) {
  stop();
  context ??= new AudioContext();
  context.resume();
  now = tune;
  if (tune.place >= tune.seconds - 0.01) tune.place = 0;
  tune.begin();
  tune.mark(true);
  timer = setInterval(tick, 25);
  tick();
}

function stop() {
  if (!now) return;
  const tune = now;
  clearInterval(timer);
  tune.struck.splice(0).forEach(hush);
  now = null;
  tune.mark(false);
  tune.show();
}

function tick() {
  if (!now) return;
  now.place = now.heard();
  if (now.place >= now.seconds) {
    now.struck = []; // they ring out
    now.place = 0;
    return stop();
  }
  now.schedule();
  now.show();
}

// --- the page ----------------------------------------------------------------------------------------------------

const articles = [...document.querySelectorAll(".tune")];
const tunes = articles.map((article, i) => article.querySelector(".player") && new Tune(article, data[i]));
tempo.oninput = () => {
  tempo.nextElementSibling.textContent = `${tempo.value} %`;
  if (now) now.go(now.heard());
};
if (tunes.some(Boolean)) tempo.parentElement.hidden = false;
window.addEventListener("pagehide", stop);
