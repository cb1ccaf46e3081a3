// How is a value written for people?

const known = (value) => typeof value === "number" && Number.isFinite(value);
export const NONE = "–"; // where nothing is known

export function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en") : NONE;
}

// A rate or a mean: three digits that say something.
export function rate(value) {
  if (!known(value)) return NONE;
  if (value >= 99.95) return count(value);
  if (value >= 9.995) return value.toFixed(1);
  return value === 0 ? "0" : value < 0.005 ? "<0.01" : value.toFixed(2);
}

// [number, unit] of octets, of a time in seconds.
export function octets(value) {
  if (!known(value)) return [NONE, ""];
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) [value, at] = [value / 1024, at + 1];
  return [at === 0 || value >= 99.95 ? String(Math.round(value)) : value.toFixed(1), units[at]];
}

export function delay(value) {
  if (!known(value)) return [NONE, ""];
  if (value >= 0.9995) return [value >= 9.95 ? count(value) : value.toFixed(1), "s"];
  const thousandths = value * 1000;
  return [thousandths >= 9.95 ? count(thousandths) : thousandths.toFixed(1), "ms"];
}

export const joined = ([number, unit]) => (unit ? `${number} ${unit}` : number);

// A time span by its two largest units.
export function lasting(seconds) {
  if (!known(seconds)) return NONE;
  for (const [size, unit, smaller, name] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"]]) {
    if (seconds < size) continue;
    const rest = Math.floor((seconds % size) / smaller);
    return `${Math.floor(seconds / size)} ${unit} ${rest} ${name}`;
  }
  if (seconds >= 60) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(Math.max(0, seconds))} s`;
}

const two = (number) => String(number).padStart(2, "0");

// The time of day where the reader is; seconds since 1970.
export function clock(seconds, withSeconds = true) {
  const at = new Date(seconds * 1000);
  const short = `${two(at.getHours())}:${two(at.getMinutes())}`;
  return withSeconds ? `${short}:${two(at.getSeconds())}` : short;
}

export function day(at) {
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

// When a mail came, to the minute. The day is always there: a page may be open for many.
export function whenShort(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? iso : `${day(at)} ${clock(at / 1000, false)}`;
}

// The same to the second, and as the server said it.
export function whenLong(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? iso : `${when(at / 1000)} here, ${iso}`;
}

export function when(seconds) {
  return `${day(new Date(seconds * 1000))} ${clock(seconds)}`;
}

export const many = (number, one, more = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : more}`;
