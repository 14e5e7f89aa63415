"use strict";
(() => {
  // Copy buttons
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.dataset.copy;
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // Which section is being read
  const links = new Map([...document.querySelectorAll(".toc li a")].map((link) => [link.hash.slice(1), link]));
  if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.classList.remove("here");
        links.get(entry.target.id)?.classList.add("here");
      }
    }, { rootMargin: "-20% 0px -70% 0px" });
    for (const section of document.querySelectorAll("main > section")) seen.observe(section);
  }

  // Contours of the pictures
  for (const box of document.querySelectorAll("[data-layer]")) {
    box.addEventListener("change", () => document.body.classList.toggle(`no-${box.dataset.layer}`, !box.checked));
  }

  // A page that reloads itself stays where it was read
  if (document.querySelector('meta[http-equiv="refresh"]')) {
    const place = `autoseg-report ${location.pathname}`;
    try {
      const kept = sessionStorage.getItem(place);
      if (kept !== null && !location.hash) window.scrollTo({ top: Number(kept), behavior: "instant" });
      window.addEventListener("pagehide", () => sessionStorage.setItem(place, String(window.scrollY)));
    } catch { /* no storage for files in this browser */ }
  }

  // Viewer
  const dialog = document.getElementById("viewer");
  if (!dialog) return;
  const part = (name) => document.getElementById(`viewer-${name}`);
  const names = JSON.parse(document.getElementById("label-names").textContent);
  const palette = [[86, 180, 233], [255, 157, 46], [47, 199, 155], [226, 155, 196], [240, 192, 64], [143, 181, 255], [201, 213, 106]];
  const errors = [[0, 0, 0], [154, 163, 173], [86, 180, 233], [255, 157, 46], [232, 107, 176]];
  const errorNames = ["", "right", "missed", "extra", "another label"];
  const overlays = ["errors", "reference", "segmentation"];
  let viewer = null;

  const lookup = (colours, labels) => ({
    R: colours.map((c) => c[0]), G: colours.map((c) => c[1]), B: colours.map((c) => c[2]),
    A: colours.map((_, i) => (i ? 255 : 0)), I: colours.map((_, i) => i), labels,
  });
  const labelColours = [[0, 0, 0], ...names.map((_, i) => palette[i % palette.length])];

  function note(text) {
    part("note").textContent = text;
    part("note").hidden = !text;
  }

  function legend(kind) {
    const shown = kind === "errors"
      ? errors.slice(1).map((colour, i) => [errorNames[i + 1], colour])
      : names.slice(0, 12).map((name, i) => [name, palette[i % palette.length]]);
    part("legend").replaceChildren(...shown.map(([name, colour]) => {
      const item = document.createElement("span");
      const key = document.createElement("i");
      key.className = "key box";
      key.style.background = `rgb(${colour.join(" ")})`;
      item.append(key, ` ${name}`);
      return item;
    }));
  }

  function apply() {
    if (!viewer || viewer.volumes.length < 4) return;
    const kind = part("overlay").value;
    const view = part("view").value;
    const surface = view === "surface";
    viewer.setOpacity(0, surface ? 0 : 1);
    overlays.forEach((name, i) => viewer.setOpacity(i + 1, name === kind ? (surface ? 1 : Number(part("opacity").value)) : 0));
    const types = {
      planes: viewer.sliceTypeMultiplanar, surface: viewer.sliceTypeRender, axial: viewer.sliceTypeAxial,
      coronal: viewer.sliceTypeCoronal, sagittal: viewer.sliceTypeSagittal,
    };
    viewer.opts.show3Dcrosshair = !surface;
    viewer.setSliceType(types[view]);
    viewer.setClipPlane(surface ? [2, 0, 0] : [0, 270, 0]);
    legend(kind);
  }

  async function start() {
    if (viewer) return;
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("WebGL 2 is missing");
    if (typeof niivue === "undefined") {
      const script = document.createElement("script");
      script.textContent = part("source").textContent;
      document.head.append(script);
    }
    const made = new niivue.Niivue({
      backColor: [0.043, 0.055, 0.071, 1], crosshairColor: [1, 1, 1, 0.55], crosshairWidth: 0.15, logLevel: "error",
      multiplanarShowRender: 1, multiplanarLayout: 2, clipPlaneColor: [0.6, 0.65, 0.7, 0.15], show3Dcrosshair: true, isRadiologicalConvention: true, dragAndDropEnabled: false,
      textHeight: 0.035, isNearestInterpolation: false,
    });
    await made.attachToCanvas(part("canvas"));
    viewer = made;
  }

  async function load(data) {
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[viewer.volumes.length - 1]);
    const image = await niivue.NVImage.loadFromBase64({ base64: data.image, name: "image.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255 });
    viewer.addVolume(image);
    for (const kind of overlays) {
      const mask = await niivue.NVImage.loadFromBase64({ base64: data[kind], name: `${kind}.nii.gz`, opacity: 0 });
      mask.setColormapLabel(kind === "errors" ? lookup(errors, errorNames) : lookup(labelColours, ["", ...names]));
      viewer.addVolume(mask);
    }
    viewer.scene.crosshairPos = new Float32Array(data.at);
    viewer.updateGLVolume();
  }

  async function open(id) {
    const found = [...document.querySelectorAll("script.case-data")].find((one) => one.dataset.case === id);
    if (!found) return;
    const data = JSON.parse(found.textContent);
    delete dialog.dataset.state;
    part("title").textContent = data.title;
    note("");
    dialog.showModal();
    try {
      await start();
      await load(data);
      apply();
      viewer.drawScene();
      dialog.dataset.state = "drawn";
    } catch (error) {
      note(`The viewer cannot start: ${error.message}. It needs WebGL 2; the pictures on the page show the same case.`);
      dialog.dataset.state = "failed";
    }
  }

  for (const button of document.querySelectorAll(".open")) button.addEventListener("click", () => open(button.dataset.case));
  for (const name of ["overlay", "view", "opacity"]) part(name).addEventListener("input", apply);
  part("close").addEventListener("click", () => dialog.close());
})();
