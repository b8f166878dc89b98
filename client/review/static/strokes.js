// Undo and redo over the one mask: each stroke is the voxels that it changed, and what they were.

const MOST = 200;

export class Strokes {
  constructor(bitmap) {
    this.bitmap = bitmap;
    this.before = bitmap.slice();
    this.done = [];
    this.undone = [];
  }

  /** Takes in what changed since the last stroke; says whether anything did. */
  take() {
    const { bitmap, before } = this;
    let count = 0;
    for (let i = 0; i < bitmap.length; i += 1) if (bitmap[i] !== before[i]) count += 1;
    if (!count) return false;
    const stroke = { at: new Uint32Array(count), was: new Uint8Array(count), is: new Uint8Array(count) };
    for (let i = 0, n = 0; n < count; i += 1) {
      if (bitmap[i] === before[i]) continue;
      stroke.at[n] = i;
      stroke.was[n] = before[i];
      stroke.is[n] = bitmap[i];
      before[i] = bitmap[i];
      n += 1;
    }
    this.done.push(stroke);
    if (this.done.length > MOST) this.done.shift();
    this.undone = [];
    return true;
  }

  undo() { return this.#move(this.done, this.undone, "was"); }

  redo() { return this.#move(this.undone, this.done, "is"); }

  #move(from, to, which) {
    const stroke = from.pop();
    if (!stroke) return false;
    stroke.at.forEach((at, n) => {
      this.bitmap[at] = stroke[which][n];
      this.before[at] = stroke[which][n];
    });
    to.push(stroke);
    return true;
  }

  /** Voxels of each label. */
  counts() {
    const found = [0, 0, 0, 0];
    for (const value of this.bitmap) if (value) found[value] += 1;
    return found;
  }
}
