(() => {
  "use strict";
  // View coordinates are those of a camera: x right, y down, z forward. A view is a frame (9 numbers, rows right, down,
  // forward in the world), turned by yaw and then by pitch, at some distance from the target that it looks at.
  const NEAR = 1e-3;
  const TURN = 0.006; // radians per pixel

  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;

  const product = (a, b) => {
    const result = new Array(9).fill(0);
    for (let i = 0; i < 9; i++) for (let k = 0; k < 3; k++) result[i] += a[i - (i % 3) + k] * b[3 * k + (i % 3)];
    return result;
  };

  const rotation = ({ frame, yaw, pitch }) => {
    const [s, c, t, d] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    return product([1, 0, 0, 0, d, -t, 0, t, d], product([c, 0, s, 0, 1, 0, -s, 0, c], frame));
  };

  const unit = (v) => v.map((x) => x / (Math.hypot(...v) || 1));
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

  const start = (root) => {
    const canvas = root.querySelector("canvas");
    const context = canvas.getContext("2d");
    const control = (name) => root.querySelector(`[data-control="${name}"]`);
    const [list, status] = [control("image"), control("status")];
    const quantised = new Uint16Array(bytesOf(root.dataset.points));
    const step = Number(root.dataset.step);
    const points = Float32Array.from(quantised, (value) => (value - 32767.5) * step);
    const colours = {};
    for (const name of ["image", "error"]) {
      if (!root.dataset[name]) continue;
      const rgb = new Uint8Array(bytesOf(root.dataset[name]));
      // The canvas wants bytes r, g, b, alpha; as one number they are in the order of the machine, which is little-endian.
      colours[name] = Uint32Array.from({ length: rgb.length / 3 }, (_, i) =>
        (0xff000000 | (rgb[3 * i + 2] << 16) | (rgb[3 * i + 1] << 8) | rgb[3 * i]) >>> 0);
    }
    // Of each camera: centre, then the four corners of its image at depth 1, relative to the centre.
    const numbers = new Float32Array(bytesOf(root.dataset.cameras));
    const cameras = JSON.parse(root.dataset.names).map(([name, kind], i) => ({
      name, kind, centre: [...numbers.subarray(15 * i, 15 * i + 3)],
      corners: [0, 1, 2, 3].map((k) => [...numbers.subarray(15 * i + 3 + 3 * k, 15 * i + 6 + 3 * k)]),
    }));
    const truth = new Map(cameras.filter((camera) => camera.kind === "truth").map((camera) => [camera.name, camera]));
    const home = () => ({ ...JSON.parse(root.dataset.view), yaw: 0, pitch: 0.4, focal: 1 });
    let view = home();
    let selected = null;
    let depth = new Float32Array(0);
    let pending = false;

    const projection = () => {
      const R = rotation(view);
      const focal = view.focal * Math.min(canvas.width, canvas.height);
      const [u, v, w] = view.target;
      const toView = (x, y, z) => {
        [x, y, z] = [x - u, y - v, z - w];
        return [R[0] * x + R[1] * y + R[2] * z, R[3] * x + R[4] * y + R[5] * z, R[6] * x + R[7] * y + R[8] * z + view.distance];
      };
      const toPixel = ([x, y, z]) => [canvas.width / 2 + (focal * x) / z, canvas.height / 2 + (focal * y) / z];
      return { R, focal, toView, toPixel };
    };

    const drawPoints = ({ toView, toPixel }) => {
      const { width, height } = canvas;
      const image = context.createImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      if (depth.length !== pixels.length) depth = new Float32Array(pixels.length);
      depth.fill(Infinity);
      const colour = colours[control("colour")?.value ?? "image"];
      const size = Math.max(1, Math.round(Number(control("size").value) * (window.devicePixelRatio || 1)));
      let drawn = 0;
      for (let i = 0; i < points.length; i += 3) {
        const place = toView(points[i], points[i + 1], points[i + 2]);
        if (place[2] < NEAR) continue;
        const [left, top] = toPixel(place).map((value) => Math.round(value - size / 2));
        if (!(left >= 0 && top >= 0 && left + size <= width && top + size <= height)) continue;
        drawn++;
        for (let row = top; row < top + size; row++) {
          for (let at = row * width + left; at < row * width + left + size; at++) {
            if (place[2] >= depth[at]) continue;
            depth[at] = place[2];
            pixels[at] = colour[i / 3];
          }
        }
      }
      context.putImageData(image, 0, 0);
      root.dataset.drawn = drawn;
    };

    const line = ({ toView, toPixel }, from, to) => {
      let [a, b] = [toView(...from), toView(...to)];
      if (a[2] > b[2]) [a, b] = [b, a];
      if (b[2] < NEAR) return;
      if (a[2] < NEAR) {
        const share = (NEAR - a[2]) / (b[2] - a[2]);
        a = a.map((value, k) => value + share * (b[k] - value));
      }
      context.moveTo(...toPixel(a));
      context.lineTo(...toPixel(b));
    };

    const shown = () => {
      const kinds = new Set([...root.querySelectorAll("[data-kind]:checked")].map((box) => box.dataset.kind));
      return cameras.filter((camera) => kinds.has(camera.kind));
    };

    const addFrustum = (project, camera, size) => {
      const corners = camera.corners.map((ray) => ray.map((value, k) => camera.centre[k] + size * value));
      corners.forEach((corner, k) => {
        line(project, camera.centre, corner);
        line(project, corner, corners[(k + 1) % 4]);
      });
    };

    const drawCameras = (project) => {
      const style = getComputedStyle(root);
      const size = Number(root.dataset.frustum) * Number(control("frustum").value);
      const visible = shown();
      const showsTruth = visible.some((camera) => camera.kind === "truth");
      // One path for each colour: a stroke costs more than a line.
      const stroke = (some, colour, width) => {
        context.beginPath();
        for (const camera of some) {
          addFrustum(project, camera, size);
          const other = camera.kind === "registered" && showsTruth ? truth.get(camera.name) : null;
          if (other) line(project, camera.centre, other.centre);
        }
        context.strokeStyle = style.getPropertyValue(colour);
        context.lineWidth = width * (window.devicePixelRatio || 1);
        context.stroke();
      };
      for (const kind of ["mapped", "registered", "truth"]) {
        stroke(visible.filter((camera) => camera.kind === kind), `--${kind}`, 1.2);
      }
      if (visible.includes(selected)) stroke([selected], "--selected", 3);
    };

    const draw = () => {
      pending = false;
      const box = canvas.getBoundingClientRect();
      const [width, height] = [box.width, box.height].map((side) =>
        Math.max(1, Math.round(side * (window.devicePixelRatio || 1))));
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      const project = projection();
      drawPoints(project);
      drawCameras(project);
    };
    const redraw = () => {
      root.dataset.state = JSON.stringify(view);
      if (!pending) requestAnimationFrame(draw);
      pending = true;
    };

    const select = (camera) => {
      selected = camera;
      list.value = camera ? String(cameras.indexOf(camera)) : "";
      control("look").disabled = !camera;
      status.textContent = camera ? `${camera.name} (${camera.kind})` : "";
      redraw();
    };

    // Stand where the camera stood, with its image just inside the canvas.
    const look = ({ centre, corners }) => {
      const [a, b, , d] = corners;
      const [right, down] = [unit(b.map((x, k) => x - a[k])), unit(d.map((x, k) => x - a[k]))];
      const forward = cross(right, down);
      const along = (axis) => Math.max(...corners.map((ray) => Math.abs(ray.reduce((sum, x, k) => sum + x * axis[k], 0))));
      const fit = Math.min(canvas.width / along(right), canvas.height / along(down)) / 2;
      const distance = home().distance / 2;
      view = {
        frame: [...right, ...down, ...forward], yaw: 0, pitch: 0, distance,
        target: centre.map((x, k) => x + distance * forward[k]), focal: fit / Math.min(canvas.width, canvas.height),
      };
      redraw();
    };

    const turn = (dx, dy) => {
      view.yaw -= TURN * dx;
      view.pitch = Math.min(Math.PI / 2, Math.max(-Math.PI / 2, view.pitch + TURN * dy));
      redraw();
    };
    const pan = (dx, dy) => {
      const { R, focal } = projection();
      const scale = (view.distance * (window.devicePixelRatio || 1)) / focal;
      view.target = view.target.map((value, k) => value - scale * (R[k] * dx + R[3 + k] * dy));
      redraw();
    };
    const zoom = (factor) => {
      view.distance = Math.min(1e4, Math.max(1e-3, view.distance / factor));
      redraw();
    };

    const pick = (x, y) => {
      const project = projection();
      const box = canvas.getBoundingClientRect();
      const ratio = canvas.width / box.width;
      let [best, nearest] = [null, 14];
      for (const camera of shown()) {
        const place = project.toView(...camera.centre);
        if (place[2] < NEAR) continue;
        const [u, v] = project.toPixel(place);
        const distance = Math.hypot(u / ratio - (x - box.left), v / ratio - (y - box.top));
        if (distance < nearest) [best, nearest] = [camera, distance];
      }
      select(best);
    };

    // One pointer turns, or moves with Shift or another button; two pointers move and zoom.
    const pointers = new Map();
    let travelled = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.focus({ preventScroll: true });
      event.preventDefault();
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      travelled = 0;
    });
    window.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const [dx, dy] = [event.clientX - before[0], event.clientY - before[1]];
      travelled += Math.hypot(dx, dy);
      if (pointers.size === 1) {
        (event.shiftKey || event.buttons & 6 ? pan : turn)(dx, dy);
      } else {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const spread = (x, y) => Math.max(10, Math.hypot(x - other[0], y - other[1]));
        pan(dx / 2, dy / 2);
        zoom(spread(event.clientX, event.clientY) / spread(...before));
      }
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, (event) => {
        const isClick = pointers.delete(event.pointerId) && pointers.size === 0 && travelled < 4;
        if (isClick && type === "pointerup" && event.button === 0) pick(event.clientX, event.clientY);
      });
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    // Only where the reader has clicked: the wheel must not stop a page from scrolling.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      zoom(Math.exp(-0.0015 * event.deltaY * (event.deltaMode === 1 ? 16 : 1)));
    }, { passive: false });
    const keys = {
      ArrowLeft: () => turn(-15, 0), ArrowRight: () => turn(15, 0), ArrowUp: () => turn(0, -15), ArrowDown: () => turn(0, 15),
      "+": () => zoom(1.15), "-": () => zoom(1 / 1.15), 0: () => control("reset").click(),
    };
    canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      keys[event.key]();
    });

    list.addEventListener("change", () => select(list.value === "" ? null : cameras[Number(list.value)]));
    list.addEventListener("dblclick", () => selected && look(selected));
    control("look").addEventListener("click", () => selected && look(selected));
    control("reset").addEventListener("click", () => {
      view = home();
      select(null);
    });
    for (const input of root.querySelectorAll("input, select[data-control='colour']")) input.addEventListener("input", redraw);
    new ResizeObserver(redraw).observe(canvas);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    select(null);
    draw();
  };

  for (const root of document.querySelectorAll(".model-view")) start(root);
})();
