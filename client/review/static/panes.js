// The sequences in step: one viewer a sequence, one place in the brain, one mask that all of them show.
// NiiVue's viewers know nothing of each other: place, zoom and mask are carried over by hand.

const COLOURS = {
  R: [0, 214, 44, 255], G: [0, 39, 160, 191], B: [0, 40, 44, 0], A: [0, 255, 255, 255],
  I: [0, 1, 2, 3], labels: ["", "NCR", "ED", "ET"],
};
const AXIS = { axial: 2, coronal: 1, sagittal: 0 };

const OPTIONS = {
  isRadiologicalConvention: true, // the patient's right on the left, marked R
  sagittalNoseLeft: true,
  isNearestInterpolation: false,
  show3Dcrosshair: false,
  crosshairColor: [0.35, 0.75, 1, 0.65],
  crosshairWidth: 0.9, crosshairWidthUnit: "mm", crosshairGap: 3,
  fontMinPx: 16, fontColor: [1, 0.85, 0.35, 1], showAllOrientationMarkers: true,
  dragAndDropEnabled: false,
  clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "", // keys are the page's
  logLevel: "silent",
  loadingText: "",
  backColor: [0, 0, 0, 1],
};

export class Panes {
  /** onStroke() is called when a stroke ends, onPlace(vox, dims, plane) when the place is another. */
  constructor({ onStroke, onPlace }) {
    this.onStroke = onStroke;
    this.onPlace = onPlace;
    this.viewers = [];
    this.plane = "axial";
    this.zoomed = 1;
  }

  async open(names, maskUrl) {
    const { Niivue } = globalThis.niivue;
    for (const name of names) {
      const viewer = new Niivue({
        ...OPTIONS,
        onLocationChange: () => this.follow(viewer),
      });
      viewer.onDrawingChanged = (how) => { if (how === "draw") this.drawn(viewer); };
      await viewer.attachTo(`pane-${name}`);
      await viewer.loadVolumes([{ url: `/images/${name}.nii` }]);
      viewer.setSliceType(viewer.sliceTypeAxial);
      viewer.window0 = [viewer.volumes[0].cal_min, viewer.volumes[0].cal_max];
      this.viewers.push(viewer);
    }
    const first = this.viewers[0];
    if (!(await first.loadDrawingFromUrl(maskUrl))) throw new Error("The mask does not lie on the images.");
    for (const viewer of this.viewers) {
      if (viewer !== first) viewer.createEmptyDrawing();
      viewer.setDrawColormap(COLOURS);
      viewer.drawBitmap = first.drawBitmap;
    }
    this.bitmap = first.drawBitmap;
    this.setPen(null);
    this.setOpacity(0.5);
    this.show();
    this.toTumour();
  }

  get dims() { return this.viewers[0].back.dimsRAS.slice(1, 4); }

  /** A stroke of one viewer ended: what it drew in is everybody's mask. */
  drawn(viewer) {
    if (viewer.drawBitmap !== this.bitmap) this.bitmap.set(viewer.drawBitmap);
    this.show();
    this.onStroke();
  }

  /** Shows the mask as it is now, in all viewers. */
  show() {
    for (const viewer of this.viewers) {
      viewer.drawBitmap = this.bitmap;
      viewer.refreshDrawing(true);
    }
  }

  /** Goes to the middle of the tumour on the axial slice that shows most of it. */
  toTumour() {
    const [nx, ny, nz] = this.dims;
    const slices = Array.from({ length: nz }, (_, z) => ({ z, count: 0, x: 0, y: 0 }));
    this.bitmap.forEach((value, i) => {
      if (!value) return;
      const one = slices[Math.floor(i / (nx * ny))];
      one.count += 1;
      one.x += i % nx;
      one.y += Math.floor(i / nx) % ny;
    });
    const most = slices.reduce((best, one) => (one.count > best.count ? one : best));
    if (!most.count) return;
    const place = [Math.round(most.x / most.count), Math.round(most.y / most.count), most.z];
    for (const viewer of this.viewers) {
      viewer.scene.crosshairPos = viewer.vox2frac(place);
      viewer.drawScene();
    }
  }

  follow(leader) {
    const place = [...leader.scene.crosshairPos];
    for (const viewer of this.viewers) {
      if (viewer === leader) continue;
      viewer.scene.crosshairPos = [...place];
      viewer.scene.pan2Dxyzmm = [...leader.scene.pan2Dxyzmm];
      viewer.drawScene();
    }
    this.tell();
  }

  tell() {
    const viewer = this.viewers[0];
    this.onPlace(viewer.frac2vox(viewer.scene.crosshairPos), this.dims, AXIS[this.plane]);
  }

  /** Goes on by slices of the shown plane. */
  step(count) {
    const move = [0, 0, 0];
    move[AXIS[this.plane]] = count;
    this.viewers[0].moveCrosshairInVox(...move);
    this.follow(this.viewers[0]);
  }

  setPlane(plane) {
    this.plane = plane;
    const type = { axial: "sliceTypeAxial", coronal: "sliceTypeCoronal", sagittal: "sliceTypeSagittal" }[plane];
    for (const viewer of this.viewers) viewer.setSliceType(viewer[type]);
    this.tell();
  }

  /** Zooms about the crosshair. */
  setZoom(zoom) {
    const leader = this.viewers[0];
    const at = leader.frac2mm(leader.scene.crosshairPos);
    const [x, y, z] = leader.scene.pan2Dxyzmm;
    const more = this.zoomed - zoom;
    this.zoomed = zoom;
    const pan = zoom === 1 ? [0, 0, 0, 1] : [x + more * at[0], y + more * at[1], z + more * at[2], zoom];
    for (const viewer of this.viewers) {
      viewer.scene.pan2Dxyzmm = [...pan];
      viewer.drawScene();
    }
  }

  /** value is a label, 0 to erase, null to look only. */
  setPen(value, { size = 1, fill = false } = {}) {
    for (const viewer of this.viewers) {
      viewer.setDrawingEnabled(value !== null);
      viewer.opts.penSize = size;
      if (value !== null) viewer.setPenValue(value, fill);
    }
    document.body.classList.toggle("drawing", value !== null);
  }

  setOpacity(share) {
    for (const viewer of this.viewers) viewer.setDrawOpacity(share);
  }

  resetWindow() {
    for (const viewer of this.viewers) {
      [viewer.volumes[0].cal_min, viewer.volumes[0].cal_max] = viewer.window0;
      viewer.updateGLVolume();
    }
  }

  /** The mask as a NIfTI file on the scan's own grid. */
  async file() {
    const viewer = this.viewers[0];
    viewer.drawBitmap = this.bitmap;
    return viewer.saveImage({ filename: "", isSaveDrawing: true, volumeByIndex: 0 });
  }
}
