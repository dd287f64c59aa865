"use strict";
(() => {
  const clips = document.getElementById("clips");
  if (!clips) return;
  const pairs = [...clips.querySelectorAll(".pair")].map((element) => ({
    element,
    videos: [...element.querySelectorAll("video")],
    canvas: element.querySelector("canvas"),
    visible: false,
  }));
  const frame = 1 / Number(clips.dataset.fps);
  const playButton = document.getElementById("play");
  const speed = document.getElementById("speed");
  const difference = document.getElementById("difference");
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let showDifference = false;

  const shown = () => pairs.filter((pair) => pair.visible);
  const shownVideos = () => shown().flatMap((pair) => pair.videos);
  const rate = () => Number(speed.value);

  function follow(video, leader) {
    // The shorter way round the loop: just before the end and just after the start are neighbours.
    const length = leader.duration || 1;
    let late = leader.currentTime - video.currentTime;
    late -= length * Math.round(late / length);
    if (Math.abs(late) > 1.5 * frame) {
      video.currentTime = leader.currentTime;
      video.playbackRate = rate();
    } else {
      // Within a frame or so a seek would be seen; running a little faster or slower is not.
      video.playbackRate = rate() * (1 + Math.max(-0.3, Math.min(0.3, 4 * late)));
    }
  }

  function drawDifference({ videos: [reference, candidate], canvas }) {
    if (reference.readyState < 2 || candidate.readyState < 2) return;
    if (canvas.width !== reference.videoWidth) canvas.width = reference.videoWidth;
    if (canvas.height !== reference.videoHeight) canvas.height = reference.videoHeight;
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(reference, 0, 0);
    context.globalCompositeOperation = "difference";
    context.drawImage(candidate, 0, 0);
    // Adding the picture to itself doubles it: three times makes it eight times as bright.
    context.globalCompositeOperation = "lighter";
    for (let doubling = 0; doubling < 3; doubling++) context.drawImage(canvas, 0, 0);
  }

  function tick() {
    const videos = shownVideos();
    const ready = videos.filter((video) => video.readyState >= 2);
    // The one that is heard leads: followers run faster and slower.
    const leader = ready.find((video) => !video.muted) || ready[0];
    if (leader && playing) {
      leader.playbackRate = rate();
      for (const video of videos) {
        if (video !== leader && video.readyState >= 2 && !video.seeking && !leader.seeking) follow(video, leader);
      }
    }
    if (showDifference) shown().forEach(drawDifference);
    requestAnimationFrame(tick);
  }

  function apply() {
    for (const { visible, videos } of pairs) {
      for (const video of videos) {
        // Out of sight means paused: a page of many clips costs no more than the few on the screen.
        if (playing && visible) video.play().catch(() => {});
        else video.pause();
      }
    }
    if (!playing) {
      const [leader, ...rest] = shownVideos();
      for (const video of rest) video.currentTime = leader.currentTime;
    }
    playButton.textContent = playing ? "Pause" : "Play";
  }

  playButton.addEventListener("click", () => {
    playing = !playing;
    apply();
  });
  difference.addEventListener("click", () => {
    showDifference = !showDifference;
    difference.setAttribute("aria-pressed", String(showDifference));
    clips.classList.toggle("with-difference", showDifference);
  });

  // Two sounds at once are none: one side is heard, of the clip that is furthest up on the screen.
  const sound = document.getElementById("sound");
  function hear() {
    const heard = sound && sound.value !== "" ? shown()[0] : undefined;
    for (const pair of pairs) {
      pair.videos.forEach((video, side) => {
        video.muted = pair !== heard || side !== Number(sound.value);
      });
    }
  }
  if (sound) sound.addEventListener("change", hear);

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) pairs.find(({ element }) => element === entry.target).visible = entry.isIntersecting;
    apply();
    hear();
  });
  for (const { element } of pairs) observer.observe(element);
  document.getElementById("controls").hidden = false;
  requestAnimationFrame(tick);
})();
