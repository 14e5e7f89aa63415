// The image and its labels in NiiVue: what is drawn, and which voxel lies under the pointer.
// Voxels are [z, y, x] in the order of the files. NiiVue shows places in mm, which the inverse of the affine of the
// file brings back to voxels, however its axes are turned.
/* global niivue */

const MOST = 2048; // voxels along an axis that every WebGL 2 can show
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

export class View {
  constructor(canvas, onPlace) {
    this.canvas = canvas;
    this.onPlace = onPlace;
    this.viewer = null;
    this.case = null;
    this.hidden = new Set();
    this.looked = null; // the map of where the network looked
    this.opacity = 0.5;
    this.plane = "all";
    this.turn = 0; // the last image that was asked for
  }

  async start() {
    if (this.viewer) return;
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("the viewer needs WebGL 2, which this browser lacks");
    const made = new niivue.Niivue({
      backColor: [0.043, 0.055, 0.071, 1], crosshairColor: [1, 1, 1, 0.45], crosshairWidth: 0.15, logLevel: "error",
      multiplanarShowRender: 1, clipPlaneColor: [0.6, 0.65, 0.7, 0.15], isRadiologicalConvention: true, dragAndDropEnabled: false, isNearestInterpolation: true,
      multiplanarPadPixels: 6, textHeight: 0.06, fontColor: [0.75, 0.79, 0.84, 1], show3Dcrosshair: true,
    });
    made.onLocationChange = (place) => this.onPlace(this.voxelOf(place.mm), place);
    await made.attachToCanvas(this.canvas);
    this.viewer = made;
  }

  async show(info, channel) {
    const turn = ++this.turn;
    await this.start();
    const base = `/api/cases/${info.id}`;
    const image = await load(`${base}/image.nii.gz?channel=${channel}&most=${MOST}`, "image.nii.gz");
    const labels = await load(`${base}/labels.nii.gz?most=${MOST}`, "labels.nii.gz");
    if (turn !== this.turn) return;
    const same = this.case && this.case.id === info.id;
    const at = same ? [...this.viewer.scene.crosshairPos] : null;
    this.clear();
    this.case = info;
    this.inverse = inverted(info.affine);
    this.thinned = Math.max(...info.shape) > MOST;
    this.labels = labels;
    this.viewer.opts.isOrientationTextVisible = !info.flat;
    this.viewer.addVolume(image);
    this.paintLabels(false);
    this.viewer.addVolume(labels);
    if (at) this.viewer.scene.crosshairPos = at;
    this.viewer.setOpacity(1, this.opacity);
    this.setPlane(this.plane);
    this.viewer.opts.crosshairWidth = Math.max(...info.shape.map((n, axis) => n * info.spacing[axis])) / 900;
    this.viewer.setClipPlane(info.flat ? [2, 0, 0] : [0, 270, 0]); // the solid one is cut open at the crosshair's side
    this.viewer.updateGLVolume();
  }

  clear() {
    this.case = this.looked = null;
    if (!this.viewer) return;
    while (this.viewer.volumes.length) this.viewer.removeVolume(this.viewer.volumes[this.viewer.volumes.length - 1]);
    this.viewer.drawScene();
  }

  // Where the network looked for a label, over the image; what should be known of it.
  async why(info, label) {
    this.hideWhy();
    const turn = this.turn;
    const url = `/api/cases/${info.id}/saliency.nii.gz?most=${MOST}&label=${encodeURIComponent(label)}`;
    const [volume, answer] = await loadAnswer(url, "saliency.nii.gz", "warm");
    if (turn !== this.turn) return "";
    this.looked = volume;
    [volume.cal_min, volume.cal_max] = [0.25, 1];
    this.viewer.addVolume(volume);
    this.viewer.setOpacity(this.viewer.volumes.length - 1, 0.6);
    this.viewer.updateGLVolume();
    return decodeURIComponent(answer.headers.get("X-Note") || "");
  }

  hideWhy() {
    if (!this.looked) return;
    this.viewer.removeVolume(this.looked);
    this.looked = null;
    this.viewer.updateGLVolume();
  }

  // Other labels: what changed of them, or all of them again.
  async update(info, changed) {
    this.case = info;
    if (changed && !changed.voxels) return;
    this.hideWhy();
    if (changed && !this.thinned && TYPES[changed.dtype] && this.fits(changed)) {
      await this.put(changed);
    } else {
      const turn = this.turn;
      const labels = await load(`/api/cases/${info.id}/labels.nii.gz?most=${MOST}`, "labels.nii.gz");
      if (turn !== this.turn) return;
      this.viewer.removeVolume(this.labels);
      this.labels = labels;
      this.paintLabels(false);
      this.viewer.addVolume(labels);
      this.viewer.setOpacity(1, this.opacity);
    }
    this.viewer.updateGLVolume();
  }

  fits(changed) {
    return changed.dtype === "uint8" || this.labels.img.BYTES_PER_ELEMENT > 1;
  }

  async put(changed) {
    const packed = Uint8Array.from(atob(changed.data), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const values = new TYPES[changed.dtype](await new Response(stream).arrayBuffer());
    const [[z0, z1], [y0, y1], [x0, x1]] = changed.box;
    const [, ny, nx] = this.case.shape;
    let from = 0;
    for (let z = z0; z < z1; z++) {
      for (let y = y0; y < y1; y++) {
        const to = (z * ny + y) * nx;
        for (let x = x0; x < x1; x++) this.labels.img[to + x] = values[from++];
      }
    }
  }

  // Colours of the labels; those that are hidden are transparent.
  paintLabels(draw = true) {
    if (!this.labels || !this.case) return;
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const [value, colour, name] of this.colours()) {
      table.I.push(value);
      table.R.push(parseInt(colour.slice(1, 3), 16));
      table.G.push(parseInt(colour.slice(3, 5), 16));
      table.B.push(parseInt(colour.slice(5, 7), 16));
      table.A.push(this.hidden.has(name) ? 0 : 255);
      table.labels.push(name);
    }
    this.labels.setColormapLabel(table);
    if (draw && this.viewer) this.viewer.updateGLVolume();
  }

  colours() {
    const objects = this.case.labels.filter((label) => label.objects !== null);
    const plain = this.case.labels.filter((label) => label.objects === null).map((label) => [label.value, label.colour, label.name]);
    if (!objects.length) return plain;
    const most = this.labels.img.reduce((a, b) => Math.max(a, b), 0);
    const taken = new Set(plain.map(([value]) => value));
    for (let value = 1; value <= most; value++) {
      if (!taken.has(value)) plain.push([value, hue(value), objects[0].name]);
    }
    return plain.sort((a, b) => a[0] - b[0]);
  }

  setOpacity(value) {
    this.opacity = value;
    if (this.viewer && this.viewer.volumes.length > 1) this.viewer.setOpacity(1, value);
  }

  setPlane(plane) {
    this.plane = plane;
    if (!this.viewer) return;
    const { sliceTypeMultiplanar, sliceTypeAxial, sliceTypeCoronal, sliceTypeSagittal } = this.viewer;
    const types = { all: sliceTypeMultiplanar, axial: sliceTypeAxial, coronal: sliceTypeCoronal, sagittal: sliceTypeSagittal };
    this.viewer.setSliceType(this.case && this.case.flat ? sliceTypeAxial : types[plane]);
  }

  // The voxel at a place of the canvas in CSS pixels; null: there is none.
  voxelAt(x, y) {
    if (!this.viewer || !this.case) return null;
    const dpr = this.viewer.uiData.dpr || 1;
    const share = this.viewer.canvasPos2frac([x * dpr, y * dpr]);
    return share[0] < 0 ? null : this.voxelOf(this.viewer.frac2mm(share));
  }

  tileAt(x, y) {
    const dpr = this.viewer.uiData.dpr || 1;
    return this.viewer.tileIndex(x * dpr, y * dpr);
  }

  // Where the crosshair is to be: a voxel.
  lookAt(voxel) {
    const [z, y, x] = voxel;
    const mm = this.case.affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
    this.viewer.scene.crosshairPos = this.viewer.mm2frac(mm);
    this.viewer.drawScene();
  }

  // Where a voxel is drawn, in CSS pixels of the canvas; null: not in this plane.
  positionOf(voxel) {
    const [z, y, x] = voxel;
    const mm = this.case.affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
    const found = this.viewer.frac2canvasPos(this.viewer.mm2frac(mm));
    const dpr = this.viewer.uiData.dpr || 1;
    return found ? [found[0] / dpr, found[1] / dpr] : null;
  }

  voxelOf(mm) {
    if (!this.case || !this.inverse) return null;
    const xyz = this.inverse.map((row) => Math.round(row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]));
    const voxel = [xyz[2], xyz[1], xyz[0]];
    return voxel.every((i, axis) => i >= 0 && i < this.case.shape[axis]) ? voxel : null;
  }
}

async function load(url, name) {
  return (await loadAnswer(url, name, "gray"))[0];
}

async function loadAnswer(url, name, colormap) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error((await answer.json()).error);
  const buffer = await answer.arrayBuffer();
  return [await niivue.NVImage.loadFromUrl({ url: name, name, buffer, colormap }), answer];
}

function inverted(affine) {
  const [[a, b, c, p], [d, e, f, q], [g, h, i, r]] = affine;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / det));
  return rows.map((row) => [...row, -(row[0] * p + row[1] * q + row[2] * r)]);
}

function hue(value) {
  const angle = ((value * 0.618033988749895) % 1) * 6;
  const x = Math.round(255 * (1 - Math.abs((angle % 2) - 1)));
  const rgb = [[255, x, 0], [x, 255, 0], [0, 255, x], [0, x, 255], [x, 0, 255], [255, 0, x]][Math.floor(angle)];
  return `#${rgb.map((v) => Math.round(55 + v * 0.75).toString(16).padStart(2, "0")).join("")}`;
}
